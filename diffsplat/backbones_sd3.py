"""Architecture facts of SD3-medium and SD3.5-medium, text- and image-conditioned.

Constructor arguments of the stock diffusers classes, the noise process, what the text tensors look like, and the
defaults of a request.
"""

from typing import Any

from diffsplat.backbones import NoiseSchedule

SD3_LATENT_CHANNELS = 16
SD3_LATENT_SIZE = 32

SD3_SCHEDULE = NoiseSchedule("flow", "velocity", shift=3.0)  # text and image models alike

# Text embeddings: CLIP-L and bigG (their second-to-last states side by side, 2048 channels, zeros up to 4096), then
# T5-XXL behind them. Without T5 as many zero rows as CLIP has tokens stand in its place. Pooled: both CLIP projections.
SD3_TEXT_WIDTH = 4096
SD3_POOLED_WIDTH = 768 + 1280
SD3_CLIP_TOKENS = 77
SD3_T5_TOKENS = 256


def _transformer(image: bool, position_grid: int, **config: Any) -> dict[str, Any]:
    return {
        "sample_size": SD3_LATENT_SIZE,
        "patch_size": 2,
        "in_channels": SD3_LATENT_CHANNELS + 6 + image,  # Pluecker rays, and the mask channel of an image model
        "out_channels": SD3_LATENT_CHANNELS,
        "num_layers": 24,
        "attention_head_dim": 64,
        "num_attention_heads": 24,
        "joint_attention_dim": SD3_TEXT_WIDTH,
        "caption_projection_dim": 24 * 64,
        "pooled_projection_dim": SD3_POOLED_WIDTH,
        "pos_embed_max_size": position_grid,  # side of the position table in the checkpoint
        **config,
    }


_SD35 = {"dual_attention_layers": list(range(13)), "qk_norm": "rms_norm"}

# name -> constructor arguments of SD3Transformer2DModel (`diffsplat.sd3.build_sd3`)
SD3_DENOISERS: dict[str, dict[str, Any]] = {
    "sd3m_text": _transformer(False, 192),
    "sd3m_image": _transformer(True, 192),
    "sd35m_text": _transformer(False, 384, **_SD35),
    "sd35m_image": _transformer(True, 384, **_SD35),
}

# constructor arguments of AutoencoderKL, for the splats as for the image of an image model
SD3_VAE: dict[str, Any] = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": SD3_LATENT_CHANNELS,
    "norm_num_groups": 32,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "sample_size": 256,
}

# fields of BackboneSpec: defaults of a request
SD3_DEFAULTS: dict[str, Any] = {"scheduler": "flow", "steps": 28, "guidance_scale": 5.0}
