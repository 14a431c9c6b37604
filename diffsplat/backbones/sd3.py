"""SD3-medium and SD3.5-medium: diffusers' SD3Transformer2DModel."""

import dataclasses
from typing import Any

from diffsplat.backbones.spec import PLUCKER_CHANNELS, BackboneSpec, NoiseSchedule, SplatGeometry
from diffsplat.backbones.text import TEXTS
from diffsplat.backbones.unet import GSRECON, SD_AUTOENCODER

_LATENT_CHANNELS = 16
_LATENT_SIZE = 32


def _transformer(position_grid: int, **config: Any) -> dict[str, Any]:
    return {
        "sample_size": _LATENT_SIZE,
        "patch_size": 2,
        "in_channels": _LATENT_CHANNELS + PLUCKER_CHANNELS,
        "out_channels": _LATENT_CHANNELS,
        "num_layers": 24,
        "attention_head_dim": 64,
        "num_attention_heads": 24,
        "joint_attention_dim": TEXTS["sd3"].width,
        "caption_projection_dim": 24 * 64,
        "pooled_projection_dim": TEXTS["sd3"].pooled_width,
        "pos_embed_max_size": position_grid,  # side of the position table in the checkpoint
        **config,
    }


SD3 = BackboneSpec(
    name="sd3",
    family="sd3",
    latent_channels=_LATENT_CHANNELS,
    latent_size=_LATENT_SIZE,
    schedule=NoiseSchedule("flow", "velocity", shift=3.0),
    geometry=SplatGeometry(),
    text=TEXTS["sd3"],
    denoiser=_transformer(192),
    gsvae={
        **SD_AUTOENCODER,
        "latent_channels": _LATENT_CHANNELS,
        "scaling_factor": 1.5305,
        "shift_factor": 0.0609,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
    gsrecon=GSRECON,
    scheduler="flow",
    steps=28,
    guidance_scale=5.0,
)
SD35 = dataclasses.replace(
    SD3,
    name="sd35",
    text=TEXTS["sd35"],
    denoiser=_transformer(384, dual_attention_layers=list(range(13)), qk_norm="rms_norm"),
)
