"""The base model's image VAE, encoder half: the condition image of an image model, and Instant3D's first latents.

Not the GSVAE: three channels of colour instead of twelve of splats. Axes: B images, C latent channels.
"""

from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from diffsplat.backbones import BackboneSpec


class ImageEncoder(nn.Module):
    """Images to latents, multiplied by the VAE's scaling factor. Layers are the stock AutoencoderKL's own.

    The shift of SD3's VAE is not subtracted: the published pipelines leave it out, although training did subtract it.
    """

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.encoder = vae.encoder
        self.quant_conv = vae.quant_conv  # None in SD3's VAE
        self.scaling_factor = float(vae.config.scaling_factor)

    def forward(self, images: Tensor) -> Tensor:
        """Posterior mean, what a condition view is made of: [B, 3, H, W] in [0, 1] -> [B, C, h, w]."""
        return self.moments(images)[0]

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the posterior, both scaled."""
        hidden = self.encoder(2 * images - 1)
        mean, log_variance = (hidden if self.quant_conv is None else self.quant_conv(hidden)).chunk(2, dim=1)
        return self.scaling_factor * mean, self.scaling_factor * torch.exp(0.5 * log_variance.clamp(-30, 20))


class ImageMoments(nn.Module):
    """The exported graph: both moments of the posterior, since Instant3D's start is drawn from it."""

    def __init__(self, encoder: ImageEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] in [0, 1] -> mean and standard deviation [B, C, h, w], both scaled."""
        return self.encoder.moments(images)


def build_image_encoder(spec: BackboneSpec) -> ImageEncoder:
    """The base image VAE's encoder: of the GSVAE's architecture, with three channels. Random weights."""
    config = {name: value for name, value in spec.gsvae.items() if name != "tiny_decoder"}
    return ImageEncoder(AutoencoderKL(**config, in_channels=3, out_channels=3))
