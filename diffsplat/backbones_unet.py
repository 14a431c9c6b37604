"""Facts of SD2.1 and SDXL: the fields in which their backbones differ from SD1.5's, and what an image model changes.

`dataclasses.replace(SD15, **SDXL)` is the text-conditioned backbone, `image_conditioned` of it the other one.
"""

from dataclasses import replace
from typing import Any

from diffsplat.backbones import SD15, BackboneSpec, NoiseSchedule, TextEncoderSpec

# Published as an option only: no weights exist, and the reference's own script stops at the tokenizer. The base is the
# 768 px model, which predicts v; its text encoder is OpenCLIP-H without the last layer, its padding token has id 0.
SD21: dict[str, Any] = {
    "name": "sd21",
    "schedule": NoiseSchedule("vp", "v_prediction"),
    "text_encoder": TextEncoderSpec(
        "clip",
        77,
        {
            "vocab_size": 49408,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 23,
            "num_attention_heads": 16,
            "max_position_embeddings": 77,
            "hidden_act": "gelu",
        },
    ),
    "denoiser": {
        **SD15.denoiser,
        "attention_head_dim": [5, 10, 20, 20],  # numbers of heads, whatever the name says
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
        "upcast_attention": True,
    },
}

# Text: the second-to-last states of CLIP-L (768) and OpenCLIP-bigG (1280) side by side; pooled: bigG's projection. An
# empty negative prompt is zeros, text and pooled. `text_encoder` is not among the fields: SDXL has two.
SDXL_TEXT_WIDTH = 768 + 1280
SDXL_POOLED_WIDTH = 1280
SDXL_TIME_CHANNELS = 256  # of each of the six size numbers
SDXL: dict[str, Any] = {
    "name": "sdxl",
    "denoiser": {
        **{name: SD15.denoiser[name] for name in ("in_channels", "out_channels", "sample_size", "layers_per_block")},
        "block_out_channels": [320, 640, 1280],
        "attention_head_dim": [5, 10, 20],  # numbers of heads
        "transformer_layers_per_block": [1, 2, 10],
        "cross_attention_dim": SDXL_TEXT_WIDTH,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": SDXL_TIME_CHANNELS,
        "projection_class_embeddings_input_dim": SDXL_POOLED_WIDTH + 6 * SDXL_TIME_CHANNELS,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    },
    "gsvae": {**SD15.gsvae, "scaling_factor": 0.13025},
    "guidance_scale": 5.0,
}


def image_conditioned(spec: BackboneSpec) -> BackboneSpec:
    """The backbone as trained with a condition view: a mask channel more, v-prediction, weaker guidance."""
    return replace(
        spec,
        denoiser={**spec.denoiser, "in_channels": spec.denoiser["in_channels"] + 1},
        schedule=replace(spec.schedule, prediction_type="v_prediction"),
        guidance_scale=2.0,  # recommended; the reference leaves it at the text model's default
    )
