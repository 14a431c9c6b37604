"""What an autoencoder starts from: an average of its input, a base model's autoencoder, an earlier run."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors.torch import load_file
from torch import Tensor

from diffsplat.backbones import BACKBONES, NANO, PICO, BackboneSpec
from diffsplat.geometry.gaussians import GRID_LAYOUT
from diffsplat.splats.gsrecon import build_gsrecon
from diffsplat.splats.gsvae import GSVAE, build_gsvae
from training.checkpoint import read_finished, save_finished
from training.config.common import Data, Optim, RunOptions
from training.config.vae import VaeConfig
from training.loop import step_generator
from training.parents import latents_of
from training.recipe import run_stage
from training.stages.vae import VaeStage
from training.stages.vae_start import start_almost_deterministic, start_as_average


def smooth_grid(spec: BackboneSpec) -> Tensor:
    """[2, 4, 12, S, S] in [-1, 1], as coarse as the latents."""
    generator = torch.Generator().manual_seed(0)
    coarse = 2.0 * torch.rand(8, 12, spec.latent_size, spec.latent_size, generator=generator) - 1.0
    size = spec.geometry.grid_size
    return F.interpolate(coarse, size=(size, size), mode="bilinear").unflatten(0, (2, 4))


def correlation(first: Tensor, second: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1])


@pytest.mark.parametrize(
    ("spec", "passing"), [(NANO, ("rgb", "opacity", "depth", "scale")), (PICO, ("rgb", "opacity"))]
)
@torch.no_grad()
def test_averages_pass_through(spec: BackboneSpec, passing: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    gsvae = build_gsvae(spec).eval()
    grid = smooth_grid(spec)
    before = gsvae.vae.decode(gsvae.posterior(grid).mean.flatten(0, 1)).sample.unflatten(0, grid.shape[:2])
    start_as_average(gsvae)
    latents = gsvae.posterior(grid).mean
    after = gsvae.vae.decode(latents.flatten(0, 1)).sample.unflatten(0, grid.shape[:2])
    pooled = F.adaptive_avg_pool2d(grid.flatten(0, 1), spec.latent_size).unflatten(0, grid.shape[:2])
    channels = [index for name in passing for index in range(12)[GRID_LAYOUT[name]]]
    assert len(channels) == min(8, spec.latent_channels)
    for place, channel in enumerate(channels):
        # A group norm on the way takes each view's own mean and spread, which leaves the image of a view as it is.
        for view in range(4):
            assert correlation(latents[0, view, place], pooled[0, view, channel]) > 0.9
            assert correlation(after[0, view, channel], grid[0, view, channel]) > 0.8
        assert abs(correlation(before[:, :, channel], grid[:, :, channel])) < 0.5


@torch.no_grad()
def test_a_new_posterior_is_almost_deterministic() -> None:
    torch.manual_seed(0)
    gsvae = build_gsvae(PICO).eval()
    start_almost_deterministic(gsvae)
    log_variance = gsvae.posterior(smooth_grid(PICO)).log_variance
    assert (log_variance + 6.0).abs().max() < 0.5  # deviations of about exp(-3)


def test_an_autoencoder_too_narrow_for_its_averages_is_refused() -> None:
    narrow = dataclasses.replace(NANO, gsvae={**NANO.gsvae, "block_out_channels": [8, 16, 16, 16]})
    with pytest.raises(AssertionError, match="too narrow"):
        start_as_average(build_gsvae(narrow))


OFFICIAL = {  # backbone -> its autoencoder, shrunken
    name: dataclasses.replace(
        BACKBONES[name],
        latent_size=8,
        geometry=dataclasses.replace(BACKBONES[name].geometry, grid_size=32),
        gsvae={
            **{key: value for key, value in BACKBONES[name].gsvae.items() if key != "tiny_decoder"},
            "block_out_channels": [8, 8, 16],
            "down_block_types": ["DownEncoderBlock2D"] * 3,
            "up_block_types": ["UpDecoderBlock2D"] * 3,
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "sample_size": 32,
        },
        gsrecon={"input_size": 32, "patch_size": 8, "dim": 16, "num_blocks": 1, "num_heads": 2},
    )
    for name in ("sd15", "sdxl", "sd3")
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A GSRecon, and per backbone an image autoencoder and its tiny one, as they are published."""
    root = tmp_path_factory.mktemp("official")
    torch.manual_seed(0)
    for name, spec in OFFICIAL.items():
        BACKBONES[f"small_{name}"] = dataclasses.replace(spec, name=f"small_{name}")
        channels = spec.latent_channels
        vae: Any = AutoencoderKL(**spec.gsvae, in_channels=3, out_channels=3)
        vae.save_pretrained(root / name / "vae")
        tiny: Any = AutoencoderTiny(
            encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8), num_encoder_blocks=(1, 1, 1),
            num_decoder_blocks=(1, 1, 1), latent_channels=channels,
        )  # fmt: skip
        tiny.save_pretrained(root / f"tiny_{name}")
    (root / "recon").mkdir()
    save_finished(root / "recon", {"gsrecon": build_gsrecon(OFFICIAL["sd15"])}, {}, {})
    yield root
    for name in OFFICIAL:
        del BACKBONES[f"small_{name}"]


def official_config(runs: Path, name: str, out: str, **options: Any) -> VaeConfig:
    return VaeConfig(
        preset=f"test/{name}",
        backbone=f"small_{name}",
        data=Data(objects=4, validation_objects=1, batch_size=2, views=5, pool_size=1),
        optim=Optim(steps=1, warmup_steps=0, lr=1e-5),
        recon=runs / "recon",
        run=RunOptions(out=runs / "runs" / out, threads=1),
        **options,
    )


@pytest.mark.parametrize("name", list(OFFICIAL))
def test_gsvae_starts_from_a_base_models_autoencoder_and_the_tiny_decoder_from_its_tiny_one(
    runs: Path, name: str
) -> None:
    """The published start: 3 channels tiled to 12. Then a step of each part, and a tiny decoder on the same latents."""
    first = official_config(runs, name, name, base=runs / name)
    stage = VaeStage(first)
    gsvae = stage.build()
    base: Any = AutoencoderKL.from_pretrained(runs / name / "vae")
    assert isinstance(gsvae, GSVAE) and gsvae.tiny_decoder is None
    assert torch.equal(gsvae.vae.encoder.conv_in.weight, base.encoder.conv_in.weight.repeat(1, 4, 1, 1))
    assert torch.equal(gsvae.vae.decoder.conv_out.bias, base.decoder.conv_out.bias.repeat(4))
    assert torch.equal(gsvae.vae.decoder.conv_in.weight, base.decoder.conv_in.weight)
    assert (gsvae.vae.quant_conv is None) == (name == "sd3")

    run_stage(first)
    facts = read_finished(first.run.out)
    assert facts["latent_scale"]["scaling_factor"] != OFFICIAL[name].gsvae["scaling_factor"]
    assert facts["tiny_decoder"] is None and "latents" not in facts

    second = official_config(
        runs, name, f"{name}-tiny", vae=first.run.out, tiny_base=runs / f"tiny_{name}", part="tiny", tiny_width=8,
        tiny_blocks=1,
    )  # fmt: skip
    stage = VaeStage(second)
    gsvae = stage.build()
    assert isinstance(gsvae, GSVAE) and gsvae.tiny_decoder is not None
    assert gsvae.scaling_factor == facts["latent_scale"]["scaling_factor"]
    tiny: Any = AutoencoderTiny.from_pretrained(runs / f"tiny_{name}")
    ours, theirs = gsvae.tiny_decoder.layers[-1], tiny.decoder.layers[-1]
    assert torch.equal(ours.weight, theirs.weight.repeat(4, 1, 1, 1))
    assert all(parameter.requires_grad for parameter in gsvae.tiny_decoder.parameters())
    assert not any(parameter.requires_grad for parameter in gsvae.vae.parameters())
    run_stage(second)
    tiny_facts = read_finished(second.run.out)
    assert latents_of(tiny_facts) == facts["files"] and tiny_facts["latent_scale"] == facts["latent_scale"]
    before, after = (load_file(run.run.out / "finished" / "gsvae.safetensors") for run in (first, second))
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())


def test_the_tiny_decoder_gets_scaled_latents_through_the_post_quant_conv(runs: Path) -> None:
    """As published, for backbones with such a layer and without."""
    for name in ("sd15", "sd3"):
        first = official_config(runs, name, f"{name}-scaled", base=runs / name)
        run_stage(first)
        config = official_config(runs, name, "unused", vae=first.run.out, part="tiny", tiny_width=8)
        stage = VaeStage(config)
        torch.manual_seed(0)
        stage.build()
        z = torch.randn(1, 4, stage.spec.latent_channels, 8, 8, generator=torch.Generator().manual_seed(0))
        gsvae = stage.gsvae
        scaled = gsvae.scaling_factor * (z - gsvae.shift_factor)
        flat = scaled.flatten(0, 1)
        assert gsvae.tiny_decoder is not None
        expected = gsvae.tiny_decoder(flat if name == "sd3" else gsvae.vae.post_quant_conv(flat))
        torch.testing.assert_close(stage._decode(z)[0], expected)


def test_compat_trains_as_published(runs: Path) -> None:
    """No KL, a plain mean over the grid, values clamped before both terms, the base model's scale."""
    ours, published = (
        VaeStage(official_config(runs, "sd15", f"compat-{compat}", base=runs / "sd15", compat=compat))
        for compat in (False, True)
    )
    published.build()
    batch = next(published.stream(0, 1))
    total, parts = published.loss(batch, step_generator(0, 0, 0))
    with torch.no_grad():
        grid = published.reconstruct(published.gsrecon, batch)
        posterior = published.gsvae.posterior(grid)
        noise = torch.randn(posterior.mean.shape, generator=step_generator(0, 0, 0))
        decoded = published._decode(posterior.sample(noise))
    assert decoded.abs().max() > 1
    torch.testing.assert_close(parts["grid_error"], F.mse_loss(decoded.clamp(-1, 1), grid))
    rendered = parts["image_mse"] + parts["mask_mse"] + 0.2 * parts["dssim"]
    torch.testing.assert_close(total.detach(), parts["grid_error"] + rendered)
    spec = OFFICIAL["sd15"]
    assert published._latent_facts()["latent_scale"] == {
        "scaling_factor": spec.gsvae["scaling_factor"], "shift_factor": 0.0,
    }  # fmt: skip
    ours.gsrecon, ours.gsvae = published.gsrecon, published.gsvae
    other, parts = ours.loss(batch, step_generator(0, 0, 0))
    assert parts["kl"] > 0 and not torch.allclose(other, total, rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": "sdxl"}, "not the image VAE of small_sd15: scaling_factor is 0.13025, not 0.18215"),
        ({"base": "tiny_sd15"}, "AutoencoderTiny|scaling_factor"),
        ({"base": "recon"}, "holds no autoencoder"),
        ({"base": "sd15", "vae": "runs/sd15"}, "an autoencoder starts from one of the two"),
        ({"base": "sd15", "first_weights": "average"}, "the weights come from base"),
        ({"tiny_base": "tiny_sd15"}, "only part = 'tiny' trains a tiny decoder"),
        ({"part": "tiny"}, "part = 'tiny' needs the finished run whose latents it keeps"),
        ({"part": "tiny", "vae": "runs/sd15", "tiny_base": "tiny_sd3", "tiny_width": 8}, "tiny_sd3: does not fit"),
        ({"vae": "recon"}, "its stage trained no gsvae"),
    ],
)
def test_what_an_autoencoder_cannot_start_from_is_refused_before_the_first_step(
    runs: Path, options: dict[str, Any], message: str
) -> None:
    folders = {key: runs / value if key in ("base", "vae", "tiny_base") else value for key, value in options.items()}
    config = official_config(runs, "sd15", "refused", **folders)
    with pytest.raises(ValueError, match=message):
        run_stage(config)
    assert not (config.run.out / "log.jsonl").exists()
