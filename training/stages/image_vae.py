"""An image autoencoder for small backbones, in place of a base model's: views of objects <-> latents.

Only its encoder is kept. Its mean is shifted and scaled at the end, so that the latents of condition images, which
serving multiplies by the GSVAE's scale, have mean 0 and unit size.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from diffsplat.images.vae_encoder import ImageEncoder
from diffsplat.splats.gsvae import Posterior
from training.checkpoint import save_finished
from training.config.image_vae import ImageVaeConfig
from training.data.sample import Batch
from training.losses import psnr, ssim
from training.optim import decay_groups
from training.parents import latents_of, open_parent
from training.stage import Evaluation
from training.stages.common import ObjectStage, comparison_panel, mixed_precision

_MEASURED_BATCHES = 16


class ImageVaeStage(ObjectStage):
    """Trains encoder and decoder from random weights on all views."""

    name = "image_vae"
    config: ImageVaeConfig

    def __init__(self, config: ImageVaeConfig) -> None:
        super().__init__(config)
        self.vae = open_parent(config.vae, "gsvae")
        gsvae = {**self.spec.gsvae, **self.vae.facts["latent_scale"]}
        self.spec = dataclasses.replace(self.spec, gsvae=gsvae)

    def build(self) -> nn.Module:
        """The stock autoencoder with three channels, of the GSVAE's architecture."""
        config = {name: value for name, value in self.spec.gsvae.items() if name != "tiny_decoder"}
        network: Any = AutoencoderKL(**config, in_channels=3, out_channels=3)
        self.network = network
        trained: nn.Module = network
        return trained

    def param_groups(self) -> list[dict[str, Any]]:
        """All of it."""
        return decay_groups([self.network], self.config.optim.weight_decay)

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Error of the images and a tiny KL, through a sample of the posterior."""
        images = batch.images_rgb.to(self.device).flatten(0, 1)
        with mixed_precision(self.config):
            posterior = self._posterior(images)
            noise = torch.randn(posterior.mean.shape, generator=generator).to(self.device)
            decoded = self._decode(posterior.sample(noise))
        error, structure = F.mse_loss(decoded, images), 1.0 - ssim(decoded, images).mean()
        kl = posterior.kl().mean()
        config = self.config
        total = config.image_weight * error + config.ssim_weight * structure + config.kl_weight * kl
        return total, {"image_mse": error.detach(), "dssim": structure.detach(), "kl": kl.detach()}

    def evaluate(self, batch: Batch, generator: torch.Generator) -> Evaluation:
        """PSNR of images through the posterior's mean."""
        images = batch.images_rgb.to(self.device)
        decoded = self._decode(self._posterior(images.flatten(0, 1)).mean).unflatten(0, images.shape[:2])
        return Evaluation(
            {"psnr": psnr(decoded, images).item()}, {"truth_above_decoded": comparison_panel(images, decoded)}
        )

    def export(self, out: Path, facts: dict[str, Any]) -> None:
        """Write the encoder with its averaged weights, its latents normalised for the GSVAE's scale."""
        stream = self.stream(0, 1)
        means = [
            self._posterior(next(stream).images_rgb.to(self.device).flatten(0, 1)).mean
            for _ in range(_MEASURED_BATCHES)
        ]
        latents = torch.cat(means)
        layer = self.network.encoder.conv_out if self.network.quant_conv is None else self.network.quant_conv
        factor = 1.0 / (float(self.spec.gsvae["scaling_factor"]) * latents.std().item())
        shifted = normalised(layer, latents.mean().item(), factor)
        kept = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
        layer.load_state_dict(shifted)
        try:
            facts = {**facts, "spec": self.spec.to_dict(), "parents": {"vae": latents_of(self.vae.facts)}}
            save_finished(out, {"image_encoder": ImageEncoder(self.network)}, facts, {})
        finally:
            layer.load_state_dict(kept)

    def _posterior(self, images: Tensor) -> Posterior:
        """Of images [N, 3, H, W] in [0, 1]; fields [N, C, h, w]."""
        distribution = self.network.encode(2.0 * images - 1.0).latent_dist
        return Posterior(distribution.mean.float(), distribution.logvar.float())

    def _decode(self, latents: Tensor) -> Tensor:
        """Latents [N, C, h, w] in the autoencoder's own units -> images."""
        images: Tensor = self.network.decode(latents).sample.float()
        return 0.5 * images + 0.5


def normalised(layer: nn.Conv2d, mean: float, factor: float) -> dict[str, Tensor]:
    """Weights of the layer that gives means, then log variances, for latents ``factor * (z - mean)``."""
    half = layer.out_channels // 2
    assert layer.bias is not None
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    weight[:half] *= factor
    bias[:half] = factor * (bias[:half] - mean)
    bias[half:] += 2.0 * math.log(factor)
    return {"weight": weight, "bias": bias}
