"""The full-size SD1.5 denoiser has the official checkpoint's tensors, names and shapes; no weight is made."""

import json
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from diffsplat.backbones import SD15
from diffsplat.multiview import build_denoiser, stock_unet_config

MANIFEST = Path(__file__).parents[1] / "golden" / "manifests" / "unet_ema_sd15_text.json"


def test_sd15_text_unet_matches_the_official_manifest():
    manifest = json.loads(MANIFEST.read_text())
    with torch.device("meta"):
        unet = build_denoiser(SD15)
        from_official_config = UNet2DConditionModel(**stock_unet_config(manifest["config"]))
    for network in (unet, from_official_config):
        shapes = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
        assert shapes == manifest["state_dict"]
    assert sum(parameter.numel() for parameter in unet.parameters()) == manifest["num_parameters"]
