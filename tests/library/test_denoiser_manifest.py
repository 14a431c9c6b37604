"""Full-size UNets and ControlNet have the official checkpoints' tensors, names and shapes; no weight is made."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from diffsplat.backbones import BACKBONES, SD15, SD21
from diffsplat.denoisers.controlnet import build_controlnet
from diffsplat.denoisers.graph_inputs import STEP, request_graphs
from diffsplat.denoisers.interface import build_denoiser, denoiser_graph
from diffsplat.denoisers.view_inputs import stock_config

MANIFESTS = Path(__file__).parents[1] / "golden" / "manifests"


def shapes(network: nn.Module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in network.state_dict().items()}


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def load(name: str) -> dict[str, Any]:
    return json.loads((MANIFESTS / f"{name}.json").read_text())


@pytest.mark.parametrize(
    ("name", "backbone", "count"),
    [
        ("unet_ema_sd15_text", "sd15", 859_538_244),
        ("unet_ema_sd15_image", "sd15_image", 859_541_124),
        ("unet_ema_sdxl_text", "sdxl", 2_567_480_964),
        ("unet_ema_sdxl_image", "sdxl_image", 2_567_483_844),
        ("transformer_ema_pixart_alpha_512_text", "pixart_alpha", 610_883_744),
        ("transformer_ema_pixart_alpha_512_image", "pixart_alpha_image", 610_888_352),
        ("transformer_ema_pixart_sigma_512_text", "pixart_sigma", 610_883_744),
        ("transformer_ema_pixart_sigma_512_image", "pixart_sigma_image", 610_888_352),
        ("transformer_ema_sd3m_text", "sd3", 2_028_364_864),
        ("transformer_ema_sd3m_image", "sd3_image", 2_028_371_008),
        ("transformer_ema_sd35m_text", "sd35", 2_243_208_384),
        ("transformer_ema_sd35m_image", "sd35_image", 2_243_214_528),
    ],
)
def test_denoiser_matches_the_official_manifest(name: str, backbone: str, count: int) -> None:
    manifest, spec = load(name), BACKBONES[backbone]
    with torch.device("meta"):
        denoiser = build_denoiser(spec)
        official = build_denoiser(replace(spec, denoiser=stock_config(manifest["config"])))
    for network in (denoiser, official):
        assert shapes(network) == manifest["state_dict"]
    assert parameters(denoiser) == manifest["num_parameters"] == count
    # what shapes do not show: head counts, epsilons, activations
    ours, theirs = dict(denoiser.config), dict(official.config)
    differing = {key for key in theirs if not key.startswith("_") and _plain(ours[key]) != _plain(theirs[key])}
    assert differing <= {"upcast_attention"}  # null in the file, false by default
    assert spec.is_image_conditioned == name.endswith("_image")
    with torch.device("meta"):  # and it can be cut into its graphs
        for graph in (*request_graphs(spec), STEP):
            denoiser_graph(graph, spec, denoiser)


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
        unet = build_denoiser(SD21)
    assert parameters(unet) == 865_910_724 + 320 * 6 * 9
