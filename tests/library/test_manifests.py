"""Full-size networks have the parameters of the official checkpoints: every name, every shape, nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from diffsplat.backbones import BACKBONES, SD15
from diffsplat.splats.gsrecon import build_gsrecon
from diffsplat.splats.gsvae import build_gsvae

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


@pytest.mark.parametrize(
    ("name", "backbone"),
    [("gsvae_sd", "sd15"), ("gsvae_sd", "pixart_alpha"), ("gsvae_sdxl_fp16", "sdxl"),
     ("gsvae_sdxl_fp16", "pixart_sigma"), ("gsvae_sd3", "sd3"), ("gsvae_sd3", "sd35_image")],
)  # fmt: skip
def test_gsvae(name: str, backbone: str):
    """With the tiny decoder; what shapes do not show stands in the manifest's config."""
    manifest, spec = load(name), BACKBONES[backbone]
    with torch.device("meta"):
        gsvae = build_gsvae(spec)
    assert_matches(gsvae, manifest)
    ends = ("in_channels", "out_channels", "sample_size")
    official = {key: value for key, value in manifest["config"]["vae"].items() if key not in ends}
    ours = {key: list(value) if isinstance(value, tuple) else value for key, value in gsvae.vae.config.items()}
    assert {key: ours[key] for key in official} == official
