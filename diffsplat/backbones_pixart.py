"""Facts of PixArt-alpha and PixArt-Sigma: the fields in which their backbones differ from SD1.5's.

Plain literals, for `BackboneSpec` and for tests that build the networks without weights. Where a field names a class's
constructor arguments, the class is diffusers' PixArtTransformer2DModel or AutoencoderKL, or transformers'
T5EncoderModel.
"""

from typing import Any

_LATENT_CHANNELS = 4
_IMAGE_CHANNELS = 1  # the mask channel of networks with a condition view

# the 512 px base of both: position table of 16 x 16 tokens, no resolution and aspect-ratio embeddings
_DENOISER: dict[str, Any] = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_head_dim": 72,
    "attention_type": "default",
    "caption_channels": 4096,
    "cross_attention_dim": 1152,
    "dropout": 0.0,
    "in_channels": _LATENT_CHANNELS + 6,
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

# fields of NoiseSchedule. The base models' scheduler configs lack two of DDIM's keys, whose defaults then hold: final
# alpha-bar 1, and x0 clipped to [-1, 1].
_SCHEDULE: dict[str, Any] = {
    "process": "vp",
    "prediction_type": "epsilon",
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "ddim_final_alpha_one": True,
    "ddim_clip_x0": True,
}

# T5 v1.1 XXL, encoder only
_T5_XXL: dict[str, Any] = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "feed_forward_proj": "gated-gelu",
    "layer_norm_epsilon": 1e-6,
}


def _pixart(name: str, max_tokens: int, gsvae_scaling_factor: float) -> dict[str, Any]:
    return {
        "name": name,
        "family": "pixart",
        "latent_channels": _LATENT_CHANNELS,
        "latent_size": 32,
        "schedule": _SCHEDULE,
        "text_encoder": {"kind": "t5", "max_tokens": max_tokens, "config": _T5_XXL},
        "denoiser": _DENOISER,
        "gsvae": {
            "block_out_channels": [128, 256, 512, 512],
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
            "layers_per_block": 2,
            "latent_channels": _LATENT_CHANNELS,
            "norm_num_groups": 32,
            "scaling_factor": gsvae_scaling_factor,
            "sample_size": 256,
        },
        "scheduler": "sde-dpmsolver++",
        "steps": 20,
        "guidance_scale": 4.5,
        "eta": 1.0,
    }


PIXART_ALPHA: dict[str, Any] = _pixart("pixart_alpha", 120, 0.18215)  # SD's autoencoder
PIXART_SIGMA: dict[str, Any] = _pixart("pixart_sigma", 300, 0.13025)  # SDXL's autoencoder


def image_conditioned(fields: dict[str, Any]) -> dict[str, Any]:
    """The same backbone as trained with a condition view: one more input channel, v-prediction, weaker guidance."""
    denoiser = {**fields["denoiser"], "in_channels": fields["denoiser"]["in_channels"] + _IMAGE_CHANNELS}
    schedule = {**fields["schedule"], "prediction_type": "v_prediction"}
    return {**fields, "denoiser": denoiser, "schedule": schedule, "guidance_scale": 2.0}
