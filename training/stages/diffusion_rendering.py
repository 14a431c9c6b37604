"""The rendering loss of a denoiser: the objects that its clean estimates decode to, against true views."""

import torch
from torch import Tensor

from diffsplat.backbones import BackboneSpec
from diffsplat.geometry.gaussians import grid_to_gaussians
from diffsplat.splats.gsvae import GSVAE
from diffsplat.splats.render import render
from training.config.diffusion import RenderingOptions
from training.data.sample import Batch
from training.losses import LossParts
from training.rendering_loss import RenderingLoss
from training.stages.common import batch_cameras


class RenderedEstimate:
    """Clean estimates -> splats of the input cameras -> all views -> loss per object.

    Args:
        options: Which decoder, and the weights of the terms.
        spec: Geometry.
        gsvae: Frozen; gradients pass through its decoder.
        compat: As published: no gradient where the decoded grid leaves [-1, 1]; normals as in `RenderingLoss`.

    Raises:
        ValueError: the autoencoder has no tiny decoder, or the perceptual term's weights are missing.
    """

    def __init__(self, options: RenderingOptions, spec: BackboneSpec, gsvae: GSVAE, compat: bool) -> None:
        if options.decoder == "tiny" and gsvae.tiny_decoder is None:
            raise ValueError(
                "rendering.decoder = 'tiny': the autoencoder has no tiny decoder; train one, or use 'full'"
            )
        self.options = options
        self.geometry = spec.geometry
        self.gsvae = gsvae
        self.compat = compat
        self.loss = RenderingLoss(options.weights, spec.geometry, compat)

    def is_drawn(self, generator: torch.Generator) -> bool:
        """Whether this batch has a rendering loss: one draw per batch."""
        return torch.rand((), generator=generator).item() < self.options.probability

    def __call__(self, estimate: Tensor, views: Batch, step: int) -> LossParts:
        """Loss of each object [B].

        Args:
            estimate: [B, V, C, h, w] clean latents, float32.
            views: The objects' true views, the input views first.
            step: Updates so far, see `RenderingLoss`.
        """
        grid = self.gsvae.decode_unclamped(estimate, tiny=self.options.decoder == "tiny").float()
        clamped = grid.clamp(-1.0, 1.0)
        if not self.compat:  # the clamp would leave what lies outside without a gradient
            clamped = grid + (clamped - grid).detach()
        cameras = batch_cameras(views, self.geometry.views)
        gaussians = grid_to_gaussians(clamped, cameras, self.geometry)
        size = self.geometry.grid_size
        return self.loss(render(gaussians, batch_cameras(views), size, size, self.geometry), views, step)
