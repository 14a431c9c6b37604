"""The autoencoder of the reference files `gsvae_*`."""

from dataclasses import replace
from typing import Any

from diffsplat.backbones import SD15
from diffsplat.splats.gsvae import GSVAE, build_gsvae

TINY_NAMES = {  # arguments of DecoderTiny -> of AutoencoderTiny
    "num_blocks": "num_decoder_blocks",
    "block_out_channels": "decoder_block_out_channels",
    "upsampling_scaling_factor": "upsampling_scaling_factor",
    "act_fn": "act_fn",
    "upsample_fn": "upsample_fn",
}


def build_golden_gsvae(config: dict[str, Any]) -> GSVAE:
    """The autoencoder of a `gsvae_*` file, without its weights."""
    vae = options_of(config["vae_config"])
    vae = {name: value for name, value in vae.items() if name not in ("in_channels", "out_channels")}
    if config.get("tiny_config"):
        tiny = options_of(config["tiny_config"])
        vae["tiny_decoder"] = {ours: tiny[theirs] for ours, theirs in TINY_NAMES.items() if theirs in tiny}
    return build_gsvae(replace(SD15, gsvae=vae))


def options_of(config: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments; a saved config also names its class and version."""
    return {name: value for name, value in config.items() if not name.startswith("_")}
