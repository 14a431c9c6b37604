"""Full-size UNets and ControlNet have the official checkpoints' tensors, names and shapes; no weight is made."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from diffsplat.backbones import SD15, BackboneSpec
from diffsplat.backbones_unet import SD21, SDXL, image_conditioned
from diffsplat.controlnet import build_controlnet
from diffsplat.multiview import build_denoiser
from diffsplat.views import stock_config

MANIFESTS = Path(__file__).parents[1] / "golden" / "manifests"
SDXL_TEXT = replace(SD15, **SDXL)


def shapes(network: nn.Module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in network.state_dict().items()}


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def load(name: str) -> dict[str, Any]:
    return json.loads((MANIFESTS / f"{name}.json").read_text())


@pytest.mark.parametrize(
    ("name", "spec", "count"),
    [
        ("unet_ema_sd15_text", SD15, 859_538_244),
        ("unet_ema_sd15_image", image_conditioned(SD15), 859_541_124),
        ("unet_ema_sdxl_text", SDXL_TEXT, 2_567_480_964),
        ("unet_ema_sdxl_image", image_conditioned(SDXL_TEXT), 2_567_483_844),
    ],
)
def test_unet_matches_the_official_manifest(name: str, spec: BackboneSpec, count: int) -> None:
    manifest = load(name)
    with torch.device("meta"):
        unet = build_denoiser(spec)
        from_official_config = UNet2DConditionModel(**stock_config(manifest["config"]))
    for network in (unet, from_official_config):
        assert shapes(network) == manifest["state_dict"]
    assert parameters(unet) == manifest["num_parameters"] == count
    # what shapes do not show: head counts, epsilons, activations
    ours, official = dict(unet.config), dict(from_official_config.config)
    differing = {key for key in official if not key.startswith("_") and _plain(ours[key]) != _plain(official[key])}
    assert differing <= {"upcast_attention"}  # null in the file, false by default


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def test_controlnet_matches_the_official_manifest() -> None:
    manifest = load("mvcontrolnet_sd15")
    with torch.device("meta"):
        controlnet = build_controlnet(SD15)
    assert shapes(controlnet) == manifest["state_dict"]
    assert parameters(controlnet) == manifest["num_parameters"] == 361_296_400


def test_sd21_is_sd15_with_wider_text_and_linear_projections() -> None:
    """No manifest exists. The base UNet has 865,910,724 parameters, six Pluecker channels add 320 * 6 * 9."""
    with torch.device("meta"):
        unet = build_denoiser(replace(SD15, **SD21))
    assert parameters(unet) == 865_910_724 + 320 * 6 * 9
