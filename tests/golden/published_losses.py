"""The published training losses as formulas in numpy, independent of our code: what files with other options hold.

`given` are a file's inputs of a case, `case` its options, `out` the outputs that the file has: all of these that depend
on options are written again.
"""

import numpy as np

_STEPS = 1000


def _spread(values, like):
    """One number per object -> the axes of `like` [B, V, C, h, w]."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def _rows(values, like):
    """One number per object -> as many rows as the file has."""
    return np.repeat(values, len(like) // len(values), axis=0).astype(like.dtype)


def vp_losses(given, case, out):
    """Variance preserving, epsilon, v or x0, also in EDM's scale."""
    option = case["opt"]
    prediction, is_edm, gamma = (
        option.get("prediction_type", "epsilon"),
        option.get("edm_style_training"),
        option.get("snr_gamma"),
    )
    linear = case["base"] == "pixart"
    betas = np.linspace(1e-4, 0.02, _STEPS) if linear else np.linspace(0.00085**0.5, 0.012**0.5, _STEPS) ** 2
    abar_table = np.cumprod(1.0 - betas)
    steps = _STEPS - 1 - given["randint"] if is_edm else given["randint"]
    count = case["B"]
    clean, noise = (given[name].reshape(count, -1, *given[name].shape[1:]) for name in ("latents", "noise"))
    abar = _spread(abar_table[steps], clean)
    ratio = np.sqrt((1.0 - abar) / abar)
    noisy = clean + ratio * noise if is_edm else np.sqrt(abar) * clean + np.sqrt(1.0 - abar) * noise
    seen = noisy / np.sqrt(ratio**2 + 1.0) if is_edm else noisy
    raw = given["network_output"]
    raw = raw.reshape(count, -1, *raw.shape[1:])[:, -clean.shape[1] :]
    if is_edm:
        compared = {
            "epsilon": noisy - ratio * raw,
            "v_prediction": -ratio / np.sqrt(ratio**2 + 1.0) * raw + noisy / (ratio**2 + 1.0),
            "sample": raw,
        }[prediction]
        target, weights = clean, ratio.reshape(count) ** -2.0
        out["sigmas"] = _rows(ratio.reshape(count), out["sigmas"])
    else:
        velocity = np.sqrt(abar) * noise - np.sqrt(1.0 - abar) * clean
        compared, weights = raw, np.ones(count)
        target = {"epsilon": noise, "v_prediction": velocity, "sample": clean}[prediction]
    if gamma:
        snr = (abar / (1.0 - abar)).reshape(count)
        weights = np.minimum(snr, gamma) / (snr if prediction == "epsilon" else snr + 1.0)
        out["mse_loss_weights"] = _rows(weights, out["mse_loss_weights"])
    losses = weights * ((compared - target) ** 2).reshape(count, -1).mean(1)
    out["timesteps"], out["network_timesteps"] = (
        _rows(steps, out[name]) for name in ("timesteps", "network_timesteps")
    )
    estimate = (noisy - np.sqrt(1.0 - abar) * raw) / np.sqrt(abar)  # of epsilon, for rendering losses
    _write_common(given, case, out, noisy, seen, target, compared, losses, estimate, abar.reshape(count))


def flow_losses(given, case, out):
    """Rectified flow with shift 3."""
    option = case["opt"]
    scheme, count = option.get("weighting_scheme", "logit_normal"), case["B"]
    if scheme == "logit_normal":
        normal = option.get("logit_mean", 0.0) + option.get("logit_std", 1.0) * given["normal_draw"]
        u = 1.0 / (1.0 + np.exp(-normal))
    else:
        u = given["uniform_draw"]
    if scheme == "mode":
        u = 1.0 - u - option.get("mode_scale", 1.29) * (np.cos(np.pi * u / 2.0) ** 2 - 1.0 + u)
    indices = (u * _STEPS).astype(np.int64)
    plain = 1.0 - indices / _STEPS
    sigma = 3.0 * plain / (1.0 + 2.0 * plain)
    clean, noise = (given[name].reshape(count, -1, *given[name].shape[1:]) for name in ("latents", "noise"))
    wide = _spread(sigma, clean)
    noisy = (1.0 - wide) * clean + wide * noise
    raw = given["network_output"]
    raw = raw.reshape(count, -1, *raw.shape[1:])[:, -clean.shape[1] :]
    estimate = noisy - wide * raw
    is_clean = option.get("precondition_outputs", False)
    weights = {
        "sigma_sqrt": sigma**-2.0,
        "cosmap": 2.0 / (np.pi * (1.0 - 2.0 * sigma + 2.0 * sigma**2)),
    }.get(scheme, np.ones(count))
    compared, target = (estimate, clean) if is_clean else (raw, noise - clean)
    losses = weights * ((compared - target) ** 2).reshape(count, -1).mean(1)
    written = {"u": u, "indices": indices, "sigmas": sigma, "weighting": weights}
    written |= {name: sigma * _STEPS for name in ("timesteps", "network_timesteps")}
    out |= {name: _rows(values, out[name]) for name, values in written.items()}
    _write_common(given, case, out, noisy, noisy, target, compared, losses, estimate, None)


def _write_common(given, case, out, noisy, seen, target, compared, losses, estimate, abar):
    """Outputs that both processes have; `seen` is the noisy part of the network's input."""
    option, count = case["opt"], case["B"]
    views, channels = noisy.shape[1:3]
    for name, values in (("noisy_latents", noisy), ("target", target), ("model_pred", compared)):
        out[name] = values.reshape(out[name].shape).astype(np.float32)
    rate, uniform = option.get("cfg_rate", 0.05), given["random_p"]
    for kept, null, name in (
        ("prompt_embeds", "negative_prompt_embeds", "network_text"),
        ("pooled_prompt_embeds", "negative_pooled_prompt_embeds", "network_pooled"),
    ):
        if name in out:
            text = np.where(_spread(uniform < 2.0 * rate, given[kept]), given[null], given[kept])
            out[name] = _rows(text, out[name])
    inputs = out["network_input"].reshape(count, -1, *out["network_input"].shape[1:])
    inputs[:, -views:, :channels] = seen
    if "image_latents" in given:
        lost = (uniform >= rate) & (uniform < 3.0 * rate)
        inputs[:, :1, :channels] = np.where(_spread(lost, noisy), 0.0, given["image_latents"])
    if "render_loss" in out:
        scale = case.get("vae_scaling", 1.5305 if abar is None else 0.18215)
        shift = case.get("vae_shift", 0.0609 if abar is None else 0.0)
        out["render_latents"] = (estimate / scale + shift).reshape(out["render_latents"].shape).astype(np.float32)
        rendered = rendering_losses(given, option)
        if gamma := option.get("snr_gamma_rendering"):
            weights = np.minimum(abar / (1.0 - abar), gamma)
            out["mse_loss_weights"] = weights.astype(np.float32)
            rendered = weights * rendered
        out["render_loss"] = rendered.astype(np.float32)
        losses = option.get("diffusion_weight", 1.0) * losses + option.get("render_weight", 1.0) * rendered
    out["loss"] = np.broadcast_to(losses, out["loss"].shape).astype(np.float32)


def rendering_losses(given, option):
    """Per object; the distance in place of LPIPS is that of the files."""

    def mean(values):
        return values.reshape(len(values), -1).mean(1)

    shown, truth = given["render_image"], given["gt_image"]
    total = mean((shown - truth) ** 2) + mean((given["render_alpha"] - given["gt_mask"]) ** 2)
    total = total + option.get("coord_weight", 0.0) * mean((given["render_coord"] - given["gt_coord"]) ** 2)
    one, other = given["render_normal"], given["gt_normal"]
    norms = np.linalg.norm(one, axis=2) * np.linalg.norm(other, axis=2)
    total = total + option.get("normal_weight", 0.0) * (1.0 - mean((one * other).sum(2) / norms))
    if side := option.get("lpips_resize", 256):
        resize = _bilinear(shown.shape[-1], int(side))
        shown, truth = (np.einsum("ih,bvchw,jw->bvcij", resize, images, resize) for images in (shown, truth))
    return total + option.get("lpips_weight", 1.0) * mean((2.0 * shown - 2.0 * truth) ** 2)


def _bilinear(old, new):
    """Matrix [new, old] of a bilinear resize with pixel centres at 0.5."""
    places = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0.0, None)
    low = np.minimum(places.astype(int), old - 1)
    high, share = np.minimum(low + 1, old - 1), places - low
    matrix = np.zeros((new, old))
    np.add.at(matrix, (np.arange(new), low), 1.0 - share)
    np.add.at(matrix, (np.arange(new), high), share)
    return matrix
