"""PixArt-alpha and PixArt-Sigma: diffusers' PixArtTransformer2DModel."""

import dataclasses
from typing import Any

from diffsplat.backbones.spec import PLUCKER_CHANNELS, BackboneSpec, NoiseSchedule, SplatGeometry
from diffsplat.backbones.text import TEXTS
from diffsplat.backbones.unet import GSRECON, SD_AUTOENCODER, SDXL_AUTOENCODER

_LATENT_CHANNELS = 4

# the 512 px base of both: position table of 16 x 16 tokens, no resolution and aspect-ratio embeddings
_DENOISER: dict[str, Any] = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_head_dim": 72,
    "attention_type": "default",
    "caption_channels": 4096,
    "cross_attention_dim": 1152,
    "dropout": 0.0,
    "in_channels": _LATENT_CHANNELS + PLUCKER_CHANNELS,
    "interpolation_scale": 1,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "norm_num_groups": 32,
    "norm_type": "ada_norm_single",
    "num_attention_heads": 16,
    "num_embeds_ada_norm": 1000,
    "num_layers": 28,
    "out_channels": 2 * _LATENT_CHANNELS,  # the second half is the learned variance, never used
    "patch_size": 2,
    "sample_size": 32,
    "upcast_attention": False,
    "use_additional_conditions": False,
}

# The base models' scheduler configs leave two of DDIM's keys at their defaults: final
# alpha-bar 1, and x0 clipped to [-1, 1].
_SCHEDULE = NoiseSchedule(
    "vp", "epsilon", "linear", beta_start=0.0001, beta_end=0.02, ddim_final_alpha_one=True, ddim_clip_x0=True
)

PIXART_ALPHA = BackboneSpec(
    name="pixart_alpha",
    family="pixart",
    latent_channels=_LATENT_CHANNELS,
    latent_size=32,
    schedule=_SCHEDULE,
    geometry=SplatGeometry(),
    text=TEXTS["pixart_alpha"],
    denoiser=_DENOISER,
    gsvae=SD_AUTOENCODER,
    gsrecon=GSRECON,
    guidance_scale=4.5,
)
PIXART_SIGMA = dataclasses.replace(
    PIXART_ALPHA, name="pixart_sigma", text=TEXTS["pixart_sigma"], gsvae=SDXL_AUTOENCODER
)
