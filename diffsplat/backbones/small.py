"""The networks that this repository trains and ships: pico for its tests, nano for its demo.

Both have the architecture of SD1.5, with pixel-centre rays and unit quaternions; `vocab_size` of their text encoders is
measured and written by training.
"""

import dataclasses

from diffsplat.backbones.spec import BackboneSpec, NoiseSchedule, SplatGeometry
from diffsplat.backbones.text import TextEncoderSpec, TextSpec
from diffsplat.backbones.unet import unet


def _clip_text(
    max_tokens: int, hidden_size: int, intermediate_size: int, num_hidden_layers: int, num_attention_heads: int
) -> TextSpec:
    config = {
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": num_hidden_layers,
        "num_attention_heads": num_attention_heads,
        "max_position_embeddings": max_tokens,
        "hidden_act": "quick_gelu",
    }
    return TextSpec((TextEncoderSpec("clip", max_tokens, config),))


_PICO_LATENT = 4
_PICO_GRID = 32

# The network of the tests: 32 px grids, 8 x 8 latents, about 3 M parameters in all, trained on procedural shapes.
PICO = BackboneSpec(
    name="pico",
    family="unet",
    latent_channels=_PICO_LATENT,
    latent_size=8,
    # the cosine schedule spends half of its time below SNR 1, which suits latents this small, and ends in pure noise
    schedule=NoiseSchedule("vp", "v_prediction", "squaredcos_cap_v2"),
    geometry=SplatGeometry(
        grid_size=_PICO_GRID,
        scale_min=0.0005 * 256 / _PICO_GRID,  # the scale range follows the pixel footprint
        scale_max=0.02 * 256 / _PICO_GRID,
        ray_pixel_rule="pixel_centers",
        unproject_pixel_rule="pixel_centers",
        unit_quats=True,
        opacity_compensation=False,
        near_plane=0.01,
    ),
    text=_clip_text(16, hidden_size=96, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4),
    denoiser=unet(
        _PICO_LATENT,
        8,
        block_out_channels=[48, 96],
        layers_per_block=1,
        attention_head_dim=4,
        norm_num_groups=8,
        cross_attention_dim=96,
        down_block_types=["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    ),
    gsvae={
        "block_out_channels": [24, 48, 64],
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "layers_per_block": 1,
        "latent_channels": _PICO_LATENT,
        "norm_num_groups": 8,
        "scaling_factor": 1.0,  # measured and written by training
        "sample_size": _PICO_GRID,
    },
    gsrecon={"input_size": _PICO_GRID, "patch_size": 4, "dim": 96, "num_blocks": 3, "num_heads": 4},
    scheduler="dpmsolver++",
    steps=16,
    guidance_scale=3.0,
)

_NANO_LATENT = 8  # an autoencoder that had 32 of them used 8
_NANO_GRID = 64

# The network of the demo: 64 px grids, 8 x 8 latents, about 16 M parameters in all, trained on procedural objects.
NANO = BackboneSpec(
    name="nano",
    family="unet",
    latent_channels=_NANO_LATENT,
    latent_size=8,
    schedule=PICO.schedule,
    geometry=dataclasses.replace(
        PICO.geometry,
        grid_size=_NANO_GRID,
        scale_min=0.006,  # 0.4 pixels: thinner splats show as hair where a denoiser misplaces them
        scale_max=0.02 * 256 / _NANO_GRID,
    ),
    text=_clip_text(24, hidden_size=192, intermediate_size=768, num_hidden_layers=3, num_attention_heads=4),
    denoiser=unet(
        _NANO_LATENT,
        8,
        block_out_channels=[96, 192],
        layers_per_block=1,
        attention_head_dim=[3, 6],  # the number of heads, despite its name
        norm_num_groups=8,
        cross_attention_dim=192,
        down_block_types=["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    ),
    gsvae={
        "block_out_channels": [32, 64, 96, 128],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 1,
        "latent_channels": _NANO_LATENT,
        "norm_num_groups": 1,  # more groups hide brightness from the decoder, which then learns half as fast
        "scaling_factor": 1.0,  # measured and written by training
        "sample_size": _NANO_GRID,
    },
    gsrecon={"input_size": _NANO_GRID, "patch_size": 4, "dim": 128, "num_blocks": 3, "num_heads": 4},
    scheduler="dpmsolver++",
    steps=20,
    guidance_scale=3.0,
)
