"""The encoder of the base model's image VAE, for condition images and for Instant3D's start.

Unlike the GSVAE it takes three colour channels instead of twelve splat channels. Axes: B images, C latent channels.
"""

from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from diffsplat.backbones import BackboneSpec


class ImageEncoder(nn.Module):
    """Images -> latents times the VAE's scaling factor, with the layers of the stock AutoencoderKL.

    The shift of SD3's VAE is not subtracted: the published pipelines leave it out, although training did subtract it.
    """

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.encoder = vae.encoder
        self.quant_conv = vae.quant_conv  # SD3's VAE has none
        self.scaling_factor = float(vae.config.scaling_factor)

    def forward(self, images: Tensor) -> Tensor:
        """Posterior mean, the latents of a condition view: [B, 3, H, W] in [0, 1] -> [B, C, h, w]."""
        return self.moments(images)[0]

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the posterior, both scaled."""
        hidden = self.encoder(2 * images - 1)
        mean, log_variance = (hidden if self.quant_conv is None else self.quant_conv(hidden)).chunk(2, dim=1)
        return self.scaling_factor * mean, self.scaling_factor * torch.exp(0.5 * log_variance.clamp(-30, 20))


class ImageMoments(nn.Module):
    """The exported graph: mean and deviation of the posterior, from which Instant3D's start is sampled."""

    def __init__(self, encoder: ImageEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] in [0, 1] -> mean and standard deviation [B, C, h, w], both scaled."""
        return self.encoder.moments(images)


def build_image_encoder(spec: BackboneSpec) -> ImageEncoder:
    """Build the encoder with random weights; it has the GSVAE's architecture, but three input channels."""
    config = {name: value for name, value in spec.gsvae.items() if name != "tiny_decoder"}
    return ImageEncoder(AutoencoderKL(**config, in_channels=3, out_channels=3))
