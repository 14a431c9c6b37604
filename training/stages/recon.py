"""GSRecon: four views with normals and coordinates -> a grid of Gaussians, supervised by rendering all views."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffsplat.geometry.gaussians import GRID_LAYOUT, Gaussians
from diffsplat.splats.gsrecon import build_gsrecon
from training.checkpoint import save_finished
from training.config.recon import ReconConfig
from training.data.sample import Batch
from training.losses import masked_mse
from training.optim import decay_groups
from training.parents import open_parent
from training.stage import Evaluation
from training.stages.common import ObjectStage, comparison_panel, mixed_precision

_OPACITY_FLOOR = 1e-6  # keeps the logarithm finite where the network saturates


class ReconStage(ObjectStage):
    """Trains GSRecon, from scratch or from an earlier run."""

    name = "recon"

    config: ReconConfig

    def __init__(self, config: ReconConfig) -> None:
        super().__init__(config)
        self.rendering = self.rendering_loss(config.weights)
        self.start = None if config.start is None else open_parent(config.start, "gsrecon")

    def build(self) -> nn.Module:
        """GSRecon, freshly initialised or from an earlier run."""
        self.rendering.to(self.device)
        self.gsrecon = build_gsrecon(self.spec)
        if self.start is not None:
            self.start.load("gsrecon", self.gsrecon).requires_grad_(True)
        return self.gsrecon

    def param_groups(self) -> list[dict[str, Any]]:
        """All of GSRecon."""
        return decay_groups([self.gsrecon], self.config.optim.weight_decay)

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Rendering loss on all views, and terms on the grid itself, which speed up the start and clean the grid."""
        batch = batch.to(self.device)
        views = self.geometry.views
        with mixed_precision(self.config):
            grid = self.reconstruct(self.gsrecon, batch).float()  # [B, Vi, 12, H, W]
        gaussians = self.gaussians(grid, batch)
        errors, parts = self.rendering(self.render(gaussians, batch.truth), batch.truth, self.updates)

        alphas = batch.alphas[:, :views]  # [B, Vi, 1, H, W]
        centres = positions(gaussians, views, self.geometry.grid_size)
        position = masked_mse(centres, 2.0 * batch.coords[:, :views] - 1.0, alphas == 1.0)
        background = masked_mse(grid, background_grid(grid), alphas == 0.0)
        colour = masked_mse(grid[:, :, GRID_LAYOUT["rgb"]], 2.0 * batch.images_rgb[:, :views] - 1.0, alphas == 1.0)
        config = self.config
        total = errors.mean() + config.position_weight * position + config.opacity_weight * background
        faint = faintness(grid, alphas == 1.0)
        total = total + config.colour_weight * colour + config.alive_weight * faint
        tidy = {"position_mse": position, "background_mse": background, "colour_mse": colour, "faintness": faint}
        return total, {name: value.detach().mean() for name, value in {**parts, **tidy}.items()}

    def evaluate(self, batch: Batch, generator: torch.Generator) -> Evaluation:
        """PSNR of input and of novel views."""
        batch = batch.to(self.device)
        renders = self.render(self.gaussians(self.reconstruct(self.gsrecon, batch), batch), batch)
        mask_mse = F.mse_loss(renders.alpha, batch.alphas).item()
        scalars = {**self.view_psnrs(renders.rgb, batch), "mask_mse": mask_mse}
        return Evaluation(scalars, {"truth_above_render": comparison_panel(batch.images_rgb, renders.rgb)})

    def export(self, out: Path, facts: dict[str, Any]) -> None:
        """Write GSRecon's averaged weights."""
        lineage = {**facts, "perceptual": self.rendering.perceptual_name}
        if self.start is not None:
            lineage["started_from"] = [self.start.facts["files"], *self.start.facts.get("started_from", [])]
        save_finished(out, {"gsrecon": self.gsrecon}, lineage, {})


def positions(gaussians: Gaussians, views: int, size: int) -> Tensor:
    """Centres as maps: [B, V, 3, H, W]."""
    return gaussians.means.unflatten(1, (views, size, size)).permute(0, 1, 4, 2, 3)


def faintness(grid: Tensor, solid: Tensor) -> Tensor:
    """Mean of -log(opacity) over the Gaussians of solid pixels; 0 where none is.

    The rasterizer leaves out Gaussians of opacity below 1/255, so rendering gives them no gradient: without this term
    a pixel that once was fainter stays so. [B, V, 12, H, W] in [-1, 1], [B, V, 1, H, W] -> [].
    """
    opacity = 0.5 * grid[:, :, GRID_LAYOUT["opacity"]] + 0.5
    faint = -torch.log(opacity.clamp_min(_OPACITY_FLOOR))
    return torch.where(solid, faint, 0.0).sum() / solid.sum().clamp_min(1)


def background_grid(grid: Tensor) -> Tensor:
    """Target of background pixels: white, medium scale, no rotation, transparent, at the depth of the origin.

    Rendering determines only the opacity of such a pixel; one fixed target for the rest keeps noise out of the latents.
    """
    values = [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0]
    return torch.tensor(values, device=grid.device)[:, None, None].expand_as(grid)
