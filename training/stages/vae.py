"""GSVAE: grids of a frozen GSRecon <-> latents, supervised by the grid and by renders of the decoded grid."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffsplat.geometry.gaussians import GRID_LAYOUT
from diffsplat.splats.gsrecon import build_gsrecon
from diffsplat.splats.gsvae import Posterior, build_gsvae
from training.checkpoint import load_finished, read_finished, save_finished
from training.config.vae import VaeConfig
from training.data.sample import Batch
from training.loop import Evaluation
from training.optim import decay_groups
from training.stages.common import ObjectStage, comparison_panel, mixed_precision
from training.stages.vae_start import start_almost_deterministic, start_as_average

# How visible an error in a channel of the grid is: colour and depth very, the rotation of small splats hardly.
_CHANNEL_WEIGHTS = {"rgb": 3.0, "scale": 1.0, "quat_wxyz": 0.25, "opacity": 1.0, "depth": 10.0}
_TRANSPARENT_WEIGHT = 0.05  # weight of a fully transparent pixel relative to an opaque one
_MEASURED_BATCHES = 16  # number of batches from which the latent scale is measured


class VaeStage(ObjectStage):
    """Trains the whole autoencoder, or its decoder alone on the latents of an earlier run."""

    name = "vae"
    config: VaeConfig

    def __init__(self, config: VaeConfig) -> None:
        super().__init__(config)
        self.rendering = self.rendering_loss(config.weights)
        self.recon_files = read_finished(config.recon)["files"]
        self.start = None if config.vae is None else read_finished(config.vae)
        if self.start is not None and self.start["recon"] != self.recon_files:
            raise ValueError(f"vae = {config.vae} was trained on another recon stage than {config.recon}")

    def build(self) -> nn.Module:
        """GSVAE, freshly initialised or from an earlier run, beside a frozen GSRecon."""
        self.gsrecon = load_finished(self.config.recon, "gsrecon", build_gsrecon(self.spec)).to(self.config.run.device)
        self.rendering.to(self.config.run.device)
        self.gsvae = build_gsvae(self.spec)
        if self.config.vae is None:
            if self.config.first_weights == "average":
                start_as_average(self.gsvae)
            start_almost_deterministic(self.gsvae)
        else:
            load_finished(self.config.vae, "gsvae", self.gsvae).requires_grad_(True)
        if self.config.part == "decoder":
            for frozen in (self.gsvae.vae.encoder, self.gsvae.vae.quant_conv):
                if frozen is not None:
                    frozen.requires_grad_(False)
        return self.gsvae

    def param_groups(self) -> list[dict[str, Any]]:
        """All of GSVAE, or its decoder."""
        return decay_groups([self.gsvae], self.config.optim.weight_decay)

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Error of the grid, rendering loss of some objects, and a tiny KL, through a sample of the posterior."""
        batch = batch.to(self.config.run.device)
        grid = self._target_grid(batch)
        with mixed_precision(self.config):
            with torch.set_grad_enabled(self.config.part == "all"):
                posterior = self.gsvae.posterior(grid)
            posterior = Posterior(*(values.float() for values in posterior))
            noise = torch.randn(posterior.mean.shape, generator=generator).to(grid.device)
            latents = posterior.sample(noise)
            # Not GSVAE.decode: its clamp would leave values outside [-1, 1] without a gradient.
            decoded = self.gsvae.vae.decode(latents.flatten(0, 1)).sample.float().unflatten(0, grid.shape[:2])
        grid_error = visible_error(decoded, grid)
        count = min(self.config.rendered_objects, len(grid))  # the batch is in random order
        shown = Batch._make(field[:count] for field in batch)
        renders = self.render(self.gaussians(decoded[:count].clamp(-1.0, 1.0), shown), shown)
        errors, parts = self.rendering(renders, shown, self.updates)
        rendered = errors.mean()
        kl = posterior.kl().mean()
        config = self.config
        total = config.grid_weight * grid_error + config.render_weight * rendered + config.kl_weight * kl
        spread = {"latent_std": posterior.mean.detach().std(), "latent_mean": posterior.mean.detach().mean()}
        terms = {**parts, "grid_error": grid_error.detach(), "kl": kl.detach(), **spread}
        return total, {name: value.mean() for name, value in terms.items()}

    def evaluate(self, batch: Batch, generator: torch.Generator) -> Evaluation:
        """PSNR through the posterior's mean, beside that of GSRecon alone."""
        batch = batch.to(self.config.run.device)
        grid = self._target_grid(batch)
        latents = self.gsvae.posterior(grid).mean
        decoded = self.gsvae.vae.decode(latents.flatten(0, 1)).sample.unflatten(0, grid.shape[:2]).clamp(-1.0, 1.0)
        direct, through = (self.render(self.gaussians(shown, batch), batch).rgb for shown in (grid, decoded))
        scalars = {
            **self.view_psnrs(through, batch),
            "psnr_novel_recon": self.view_psnrs(direct, batch)["psnr_novel"],
            "grid_error": visible_error(decoded, grid).item(),
            "latent_std": latents.std().item(),
            "latent_mean": latents.mean().item(),
        }
        return Evaluation(scalars, {"truth_recon_vae": comparison_panel(batch.images_rgb, direct, through)})

    def export(self, out: Path, facts: dict[str, Any]) -> None:
        """Write GSVAE's averaged weights and the measured scale of its latents."""
        lineage = {**facts, "recon": self.recon_files, "perceptual": self.rendering.perceptual_name}
        if self.start is not None:
            lineage["vae"] = self.start["files"]
        save_finished(out, {"gsvae": self.gsvae}, {**lineage, **self._latent_facts()}, {})

    def _latent_facts(self) -> dict[str, Any]:
        """Scale and shift of the diffusion space, and moments per channel, over a sample of training objects."""
        if self.config.part == "decoder":
            assert self.start is not None
            return {name: self.start[name] for name in ("latent_scale", "latent_channels")}
        means = []
        stream = self.stream(0, 1)
        for _ in range(_MEASURED_BATCHES):
            means.append(self.gsvae.posterior(self._target_grid(next(stream).to(self.config.run.device))).mean)
        latents = torch.cat(means)  # [N, V, C, h, w]
        scale = {"scaling_factor": 1.0 / latents.std().item(), "shift_factor": latents.mean().item()}
        axes = (0, 1, 3, 4)
        per_channel = {"mean": latents.mean(dim=axes).tolist(), "std": latents.std(dim=axes).tolist()}
        return {"latent_scale": scale, "latent_channels": per_channel}

    def _target_grid(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            return self.reconstruct(self.gsrecon, batch)


def visible_error(decoded: Tensor, grid: Tensor) -> Tensor:
    """Mean squared error of grids [B, V, 12, H, W], weighted by visibility: by opacity and by channel.

    With the plain mean of the published loss a small autoencoder spends most of its capacity on invisible pixels.
    """
    weights = grid.new_empty(grid.shape[2])
    for name, channels in GRID_LAYOUT.items():
        weights[channels] = _CHANNEL_WEIGHTS[name]
    opacity = 0.5 * grid[:, :, GRID_LAYOUT["opacity"]] + 0.5  # [B, V, 1, H, W]
    shown = _TRANSPARENT_WEIGHT + (1.0 - _TRANSPARENT_WEIGHT) * opacity
    errors = (decoded - grid).square() * (weights / weights.mean())[:, None, None] * shown
    return errors.mean() / shown.mean()
