"""Full-size networks have the parameters of the official checkpoints: every name, every shape, nothing else."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from diffsplat.backbones import SD15, BackboneSpec
from diffsplat.gsrecon import build_gsrecon
from diffsplat.gsvae import build_gsvae

MANIFESTS = Path(__file__).parents[1] / "golden" / "manifests"


def assert_matches(module: nn.Module, manifest: dict[str, Any]) -> None:
    ours = {name: list(tensor.shape) for name, tensor in module.state_dict().items()}
    assert ours == manifest["state_dict"]
    assert sum(parameter.numel() for parameter in module.parameters()) == manifest["num_parameters"]


def load(name: str) -> dict[str, Any]:
    return json.loads((MANIFESTS / f"{name}.json").read_text())


def test_gsrecon():
    with torch.device("meta"):
        assert_matches(build_gsrecon(SD15), load("gsrecon"))


def with_gsvae(manifest: dict[str, Any]) -> BackboneSpec:
    config = manifest["config"]
    vae = {name: value for name, value in config["vae"].items() if name not in ("in_channels", "out_channels")}
    tiny = {"num_blocks": config["tiny"]["num_decoder_blocks"]}
    tiny["block_out_channels"] = config["tiny"]["decoder_block_out_channels"]
    return replace(SD15, gsvae={**vae, "tiny_decoder": tiny})


@pytest.mark.parametrize("name", ["gsvae_sd", "gsvae_sdxl_fp16", "gsvae_sd3"])
def test_gsvae(name):
    manifest = load(name)
    with torch.device("meta"):
        assert_matches(build_gsvae(with_gsvae(manifest)), manifest)


def test_gsvae_of_the_sd15_entry_is_the_official_one_without_tiny_decoder():
    state = load("gsvae_sd")["state_dict"]
    with torch.device("meta"):
        ours = {name: list(tensor.shape) for name, tensor in build_gsvae(SD15).state_dict().items()}
    assert ours == {name: shape for name, shape in state.items() if not name.startswith("tiny_decoder.")}
