"""SD1.5, SD2.1 and SDXL: the UNets."""

import dataclasses
from typing import Any

from diffsplat.backbones.spec import PLUCKER_CHANNELS, BackboneSpec, NoiseSchedule, SplatGeometry
from diffsplat.backbones.text import TEXTS

_LATENT_CHANNELS = 4

# constructor arguments of AutoencoderKL and of GSRecon, shared by all full-size backbones unless overridden
SD_AUTOENCODER: dict[str, Any] = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": _LATENT_CHANNELS,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
    "sample_size": 256,
    "tiny_decoder": {"num_blocks": [3, 3, 3, 1], "block_out_channels": [64, 64, 64, 64]},
}
SDXL_AUTOENCODER: dict[str, Any] = {**SD_AUTOENCODER, "scaling_factor": 0.13025}
GSRECON: dict[str, Any] = {"input_size": 256, "patch_size": 8, "dim": 512, "num_blocks": 12, "num_heads": 8}


def unet(latent_channels: int, latent_size: int, **config: Any) -> dict[str, Any]:
    """Constructor arguments of a UNet that takes latents and rays."""
    return {
        "in_channels": latent_channels + PLUCKER_CHANNELS,
        "out_channels": latent_channels,
        "sample_size": latent_size,
        **config,
    }


SD15 = BackboneSpec(
    name="sd15",
    family="unet",
    latent_channels=_LATENT_CHANNELS,
    latent_size=32,
    schedule=NoiseSchedule("vp", "epsilon"),
    geometry=SplatGeometry(),
    text=TEXTS["sd15"],
    denoiser=unet(
        _LATENT_CHANNELS,
        32,
        block_out_channels=[320, 640, 1280, 1280],
        layers_per_block=2,
        attention_head_dim=8,  # the number of heads, despite its name
        cross_attention_dim=768,
        down_block_types=["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    ),
    gsvae=SD_AUTOENCODER,
    gsrecon=GSRECON,
)

# The reference offers it as an option, but published no weights, and its script fails at the tokenizer. The base is the
# 768 px model, which predicts v; its text encoder is OpenCLIP-H without the last layer, its padding token has id 0.
SD21 = dataclasses.replace(
    SD15,
    name="sd21",
    schedule=NoiseSchedule("vp", "v_prediction"),
    text=TEXTS["sd21"],
    denoiser={
        **SD15.denoiser,
        "attention_head_dim": [5, 10, 20, 20],
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
        "upcast_attention": True,
    },
)

_SDXL_TIME_CHANNELS = 256  # of each of the six size numbers
SDXL = dataclasses.replace(
    SD15,
    name="sdxl",
    text=TEXTS["sdxl"],
    denoiser=unet(
        _LATENT_CHANNELS,
        32,
        block_out_channels=[320, 640, 1280],
        layers_per_block=2,
        attention_head_dim=[5, 10, 20],
        transformer_layers_per_block=[1, 2, 10],
        cross_attention_dim=TEXTS["sdxl"].width,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=_SDXL_TIME_CHANNELS,
        projection_class_embeddings_input_dim=TEXTS["sdxl"].pooled_width + 6 * _SDXL_TIME_CHANNELS,
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    ),
    gsvae=SDXL_AUTOENCODER,
    guidance_scale=5.0,
)
