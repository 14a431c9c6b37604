"""GSVAE: grids of a frozen GSRecon <-> latents, supervised by the grid and by renders of the decoded grid."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffsplat.geometry.gaussians import GRID_LAYOUT
from diffsplat.splats.gsrecon import build_gsrecon
from diffsplat.splats.gsvae import Posterior
from training.checkpoint import save_finished
from training.config.vae import VaeConfig
from training.data.sample import Batch
from training.grid_cache import GridCache
from training.optim import decay_groups
from training.parents import latents_of, open_parent
from training.stage import Evaluation
from training.stages.common import ObjectStage, comparison_panel, mixed_precision
from training.stages.vae_start import autoencoder_spec, start_gsvae

# How visible an error in a channel of the grid is: colour and depth very, size and rotation of small splats hardly.
# GSRecon gives neighbours such different ones that no latent can hold them; renders teach the decoder others.
_CHANNEL_WEIGHTS = {"rgb": 3.0, "scale": 0.25, "quat_wxyz": 0.05, "opacity": 1.0, "depth": 10.0}
_TRANSPARENT_WEIGHT = 0.05  # weight of a fully transparent pixel relative to an opaque one
_MEASURED_BATCHES = 16  # number of batches from which the latent scale is measured


class VaeStage(ObjectStage):
    """Trains the whole autoencoder, or one of its decoders alone on the latents of an earlier run."""

    name = "vae"
    config: VaeConfig

    def __init__(self, config: VaeConfig) -> None:
        super().__init__(config)
        self.rendering = self.rendering_loss(config.weights)
        self._grids: GridCache | None = None
        self.recon = open_parent(config.recon, "gsrecon")
        self.start = None if config.vae is None else open_parent(config.vae, "gsvae")
        known = self.start is None or self.start.facts["recon"] == self.recon.facts["files"]
        if not known and not config.adapt:
            raise ValueError(f"vae = {config.vae} was trained on another recon stage than {config.recon}")
        self.spec = autoencoder_spec(self.spec, config, None if self.start is None else self.start.facts)

    def build(self) -> nn.Module:
        """GSVAE, freshly initialised, from a base model or from an earlier run, beside a frozen GSRecon."""
        config, device = self.config, self.device
        self.gsrecon = self.recon.load("gsrecon", build_gsrecon(self.spec)).to(device)
        self._grids = self._grid_cache() if config.cache_grids else None
        self.rendering.to(device)
        self.gsvae = start_gsvae(self.spec, config, self.start)
        vae = self.gsvae.vae
        frozen = {
            "all": (),
            "decoder": (vae.encoder, vae.quant_conv, self.gsvae.tiny_decoder),
            "tiny": (vae,),
        }[config.part]
        for module in frozen:
            if module is not None:  # SD3's autoencoder has no quant_conv
                module.requires_grad_(False)
        return self.gsvae

    def param_groups(self) -> list[dict[str, Any]]:
        """What of GSVAE is trained."""
        return decay_groups([self.gsvae], self.config.optim.weight_decay)

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Error of the grid, rendering loss of some objects, and a tiny KL, through a sample of the posterior.

        With `compat` as published: all channels and pixels of the grid count alike, there is no KL, and values outside
        [-1, 1] are clamped before both terms, which hides them from the gradient.
        """
        config = self.config
        batch = batch.to(self.device)
        grid = self._target_grid(batch)
        with mixed_precision(config):
            with torch.set_grad_enabled(config.part == "all"):
                posterior = self.gsvae.posterior(grid)
            posterior = Posterior(*(values.float() for values in posterior))
            noise = torch.randn(posterior.mean.shape, generator=generator).to(grid.device)
            decoded = self._decode(posterior.sample(noise)).float()
        shown_grid = decoded.clamp(-1.0, 1.0)
        grid_error = F.mse_loss(shown_grid, grid) if config.compat else visible_error(decoded, grid)
        count = min(config.rendered_objects, len(grid))  # the batch is in random order
        shown = batch.rows(slice(count))
        renders = self.render(self.gaussians(shown_grid[:count], shown), shown.truth)
        errors, parts = self.rendering(renders, shown.truth, self.updates)
        kl = posterior.kl().mean()
        total = config.grid_weight * grid_error + config.render_weight * errors.mean()
        if not config.compat:
            total = total + config.kl_weight * kl
        spread = {"latent_std": posterior.mean.detach().std(), "latent_mean": posterior.mean.detach().mean()}
        terms = {**parts, "grid_error": grid_error.detach(), "kl": kl.detach(), **spread}
        return total, {name: value.mean() for name, value in terms.items()}

    def evaluate(self, batch: Batch, generator: torch.Generator) -> Evaluation:
        """PSNR through the posterior's mean, beside that of GSRecon alone."""
        batch = batch.to(self.device)
        grid = self._target_grid(batch)
        latents = self.gsvae.posterior(grid).mean
        decoded = self._decode(latents).clamp(-1.0, 1.0)
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
        """Write GSVAE's averaged weights, the scale of its latents, and what it was trained on."""
        lineage = {
            **facts,
            "recon": self.recon.facts["files"],
            "perceptual": self.rendering.perceptual_name,
            "tiny_decoder": self.spec.gsvae.get("tiny_decoder"),
        }
        if self.start is not None and self.config.part != "all":
            lineage["latents"] = latents_of(self.start.facts)
        elif self.start is not None:
            lineage["started_from"] = [self.start.facts["files"], *self.start.facts.get("started_from", [])]
        save_finished(out, {"gsvae": self.gsvae}, {**lineage, **self._latent_facts()}, {})

    def _decode(self, latents: Tensor) -> Tensor:
        """Latents in the autoencoder's own units -> grid, by the decoder that is trained, not clamped."""
        scaled = self.gsvae.scaling_factor * (latents - self.gsvae.shift_factor)
        return self.gsvae.decode_unclamped(scaled, tiny=self.config.part == "tiny")

    def _latent_facts(self) -> dict[str, Any]:
        """Scale and shift of the diffusion space, and moments per channel, over a sample of training objects.

        With `compat` the scale stays the base model's, as published.
        """
        if self.config.part != "all":
            assert self.start is not None
            return {name: self.start.facts[name] for name in ("latent_scale", "latent_channels")}
        means = []
        stream = self.stream(0, 1)
        for _ in range(_MEASURED_BATCHES):
            means.append(self.gsvae.posterior(self._target_grid(next(stream).to(self.device))).mean)
        latents = torch.cat(means)  # [N, V, C, h, w]
        scale = {"scaling_factor": 1.0 / latents.std().item(), "shift_factor": latents.mean().item()}
        if self.config.compat:
            scale = {"scaling_factor": self.gsvae.scaling_factor, "shift_factor": self.gsvae.shift_factor}
        axes = (0, 1, 3, 4)
        per_channel = {"mean": latents.mean(dim=axes).tolist(), "std": latents.std(dim=axes).tolist()}
        return {"latent_scale": scale, "latent_channels": per_channel}

    @torch.no_grad()
    def _target_grid(self, batch: Batch) -> Tensor:
        return self.reconstruct(self.gsrecon, batch) if self._grids is None else self._grids.grids(batch)

    def _grid_cache(self) -> GridCache:
        """Grids of this GSRecon; those made by another number of threads differ in their last bits."""
        origin = {
            "recon": self.recon.facts["files"],
            "gsrecon": self.spec.gsrecon,
            "geometry": dataclasses.asdict(self.geometry),
            "device": self.device.type,
            "threads": self.config.run.threads,
            "torch": str(torch.__version__),
        }
        views = self.geometry.views
        return GridCache(self.config.data.cache, origin, views, lambda batch: self.reconstruct(self.gsrecon, batch))


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
