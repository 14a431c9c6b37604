"""GSVAE: splat grids to diffusion latents and back.

A stock image autoencoder with 12 instead of 3 channels at both ends. Views are encoded and decoded one by one, as a
batch. Axes: B objects, V views, C latent channels.
"""

from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DecoderTiny
from torch import Tensor, nn

from diffsplat.backbones import BackboneSpec
from diffsplat.geometry.gaussians import GRID_WIDTH


class Posterior(NamedTuple):
    """The encoder's Gaussian over latents, in the autoencoder's own units (not scaled for diffusion)."""

    mean: Tensor  # [B, V, C, h, w]
    log_variance: Tensor  # [B, V, C, h, w] clamped to [-30, 20]

    def sample(self, noise: Tensor) -> Tensor:
        """Mean plus standard deviation times `noise` of the same shape."""
        return self.mean + torch.exp(0.5 * self.log_variance) * noise

    def kl(self) -> Tensor:
        """KL divergence from the standard normal, nats per object and view: [B, V]."""
        return 0.5 * (self.mean**2 + self.log_variance.exp() - 1.0 - self.log_variance).sum(dim=(-3, -2, -1))


class GSVAE(nn.Module):
    """The autoencoder with its latent scaling; state-dict names `vae.*` and `tiny_decoder.*` as published."""

    def __init__(self, vae: AutoencoderKL, tiny_decoder: DecoderTiny | None = None) -> None:
        super().__init__()
        self.vae: Any = vae  # AutoencoderKL, which diffusers loads lazily and hides from type checkers
        self.tiny_decoder = tiny_decoder

    @property
    def scaling_factor(self) -> float:
        """Factor s of the diffusion space s * (z - m)."""
        return float(self.vae.config.scaling_factor)

    @property
    def shift_factor(self) -> float:
        """Shift m of the diffusion space s * (z - m)."""
        return float(self.vae.config.shift_factor or 0.0)

    def posterior(self, grid: Tensor) -> Posterior:
        """[B, V, 12, H, W] in [-1, 1] -> posterior over latents."""
        distribution = self.vae.encode(grid.flatten(0, 1)).latent_dist
        shape = grid.shape[:2]
        return Posterior(distribution.mean.unflatten(0, shape), distribution.logvar.unflatten(0, shape))

    def encode(self, grid: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Grid to diffusion latents.

        Args:
            grid: [B, V, 12, H, W] in [-1, 1].
            generator: draws a sample of the posterior; without one its mean is taken (evaluation).

        Returns:
            [B, V, C, h, w], s * (z - m).
        """
        posterior = self.posterior(grid)
        if generator is None:
            latents = posterior.mean
        else:
            noise = torch.randn(
                posterior.mean.shape, generator=generator, device=generator.device, dtype=posterior.mean.dtype
            )
            latents = posterior.sample(noise.to(grid.device))
        return self.scaling_factor * (latents - self.shift_factor)

    def decode(self, latents: Tensor) -> Tensor:
        """Diffusion latents [B, V, C, h, w] -> grid [B, V, 12, H, W] clamped to [-1, 1]."""
        return self.decode_unclamped(latents).clamp(-1.0, 1.0)

    def decode_tiny(self, latents: Tensor) -> Tensor:
        """As `decode`, by the small decoder that rendering losses and previews use.

        It takes SCALED latents, still through the autoencoder's post_quant_conv where there is one (published quirk).
        """
        return self.decode_unclamped(latents, tiny=True).clamp(-1.0, 1.0)

    def decode_unclamped(self, latents: Tensor, tiny: bool = False) -> Tensor:
        """`decode` or `decode_tiny` without the clamp, which would hide values outside [-1, 1] from a loss."""
        if not tiny:
            unscaled = latents / self.scaling_factor + self.shift_factor
            return self.vae.decode(unscaled.flatten(0, 1)).sample.unflatten(0, latents.shape[:2])
        if self.tiny_decoder is None:
            raise ValueError("this GSVAE has no tiny decoder: spec.gsvae has no tiny_decoder")
        flat = latents.flatten(0, 1)
        if self.vae.post_quant_conv is not None:
            flat = self.vae.post_quant_conv(flat)
        return self.tiny_decoder(flat).unflatten(0, latents.shape[:2])

    def forward(self, grid: Tensor) -> Tensor:
        """Reconstruct a grid through the posterior's mean: [B, V, 12, H, W] -> [B, V, 12, H, W]."""
        return self.decode(self.encode(grid))


def build_gsvae(spec: BackboneSpec) -> GSVAE:
    """GSVAE of a bundle, freshly initialised, from `spec.gsvae`.

    The entry holds AutoencoderKL's arguments, and under `tiny_decoder`, where wanted, those of DecoderTiny
    (`num_blocks`, `block_out_channels`, ...).
    """
    config: dict[str, Any] = dict(spec.gsvae)
    tiny = config.pop("tiny_decoder", None)
    vae = AutoencoderKL(**config, in_channels=GRID_WIDTH, out_channels=GRID_WIDTH)
    return GSVAE(vae, None if tiny is None else build_tiny_decoder(config["latent_channels"], tiny))


def build_tiny_decoder(latent_channels: int, config: dict[str, Any]) -> DecoderTiny:
    """The decoder half of AutoencoderTiny, 12 channels out."""
    defaults = {"upsampling_scaling_factor": 2, "act_fn": "relu", "upsample_fn": "nearest"}
    return DecoderTiny(in_channels=latent_channels, out_channels=GRID_WIDTH, **{**defaults, **config})


def widen_from_image_vae(
    gsvae: GSVAE, vae_state: dict[str, Tensor], tiny_state: dict[str, Tensor] | None = None
) -> None:
    """Start a GSVAE from a 3-channel image autoencoder of the same architecture.

    The 3-channel ends are tiled four times along the 12 channels, NOT divided by four (published quirk); the output
    bias is tiled too. Everything else is copied.

    Args:
        gsvae: changed in place.
        vae_state: state dict of AutoencoderKL.
        tiny_state: state dict of AutoencoderTiny, of which only `decoder.*` is used; needed exactly when `gsvae` has a
            tiny decoder.
    """
    if (tiny_state is None) != (gsvae.tiny_decoder is None):
        raise ValueError("tiny_state: must be given exactly when the GSVAE has a tiny decoder")
    state = dict(vae_state)
    state["encoder.conv_in.weight"] = state["encoder.conv_in.weight"].repeat(1, 4, 1, 1)
    state["decoder.conv_out.weight"] = state["decoder.conv_out.weight"].repeat(4, 1, 1, 1)
    state["decoder.conv_out.bias"] = state["decoder.conv_out.bias"].repeat(4)
    gsvae.vae.load_state_dict(state)
    if tiny_state is not None and gsvae.tiny_decoder is not None:
        widen_tiny_decoder(gsvae.tiny_decoder, tiny_state)


def widen_tiny_decoder(decoder: DecoderTiny, tiny_state: dict[str, Tensor]) -> None:
    """Start a tiny decoder from an image model's AutoencoderTiny, whose output is tiled as in `widen_from_image_vae`.

    Args:
        decoder: changed in place.
        tiny_state: state dict of AutoencoderTiny, of which only `decoder.*` is used.
    """
    prefix = "decoder."
    tiny = {name.removeprefix(prefix): tensor for name, tensor in tiny_state.items() if name.startswith(prefix)}
    last = max(int(name.split(".")[1]) for name in tiny)  # layers.N.*: the output convolution comes last
    for end in (f"layers.{last}.weight", f"layers.{last}.bias"):
        tiny[end] = tiny[end].repeat(4, *[1] * (tiny[end].dim() - 1))
    decoder.load_state_dict(tiny)
