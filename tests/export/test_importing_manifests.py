"""The official checkpoints' own key sets go through the importer's check; no weight is made."""

import json
from pathlib import Path
from typing import Any

import pytest

from diffsplat.backbones import BACKBONES, BackboneSpec
from diffsplat.denoisers.view_inputs import stock_config
from export.importing.check import SHOWN, KeyReport, SourceError, check_denoiser_config, compare_keys
from export.importing.network import expected_tensors, renaming

MANIFESTS = Path(__file__).parents[1] / "golden" / "manifests"
DENOISERS = {
    "unet_ema_sd15_text": "sd15",
    "unet_ema_sd15_image": "sd15_image",
    "unet_ema_sdxl_text": "sdxl",
    "unet_ema_sdxl_image": "sdxl_image",
    "transformer_ema_pixart_alpha_512_text": "pixart_alpha",
    "transformer_ema_pixart_alpha_512_image": "pixart_alpha_image",
    "transformer_ema_pixart_sigma_512_text": "pixart_sigma",
    "transformer_ema_pixart_sigma_512_image": "pixart_sigma_image",
    "transformer_ema_sd3m_text": "sd3",
    "transformer_ema_sd3m_image": "sd3_image",
    "transformer_ema_sd35m_text": "sd35",
    "transformer_ema_sd35m_image": "sd35_image",
}
OTHERS = {
    "gsvae_sd": ("sd15", "gsvae"),
    "gsvae_sdxl_fp16": ("pixart_sigma", "gsvae"),
    "gsvae_sd3": ("sd35", "gsvae"),
    "gsrecon": ("sd15", "gsrecon"),
    "mvcontrolnet_sd15": ("sd15", "controlnet_depth"),
    "elevest_dinov2_vitb14_reg": ("sd15", "elevest"),
}


def manifest(name: str) -> dict[str, Any]:
    return json.loads((MANIFESTS / f"{name}.json").read_text())


def full_spec(backbone: str) -> BackboneSpec:
    import dataclasses

    spec = BACKBONES[backbone]
    return dataclasses.replace(spec, controls=("depth",), elevest={}) if backbone == "sd15" else spec


def compare(backbone: str, network: str, found: dict[str, list[int]]) -> KeyReport:
    expected = expected_tensors(full_spec(backbone), network)
    assert all(tensor.device.type == "meta" for tensor in expected.values())
    renamed = {renaming(network)(name): shape for name, shape in found.items()}
    return compare_keys({name: list(tensor.shape) for name, tensor in expected.items()}, renamed)


@pytest.mark.parametrize(
    ("name", "backbone", "network"),
    [
        *((name, backbone, "denoiser") for name, backbone in DENOISERS.items()),
        *((name, *where) for name, where in OTHERS.items()),
    ],
)
def test_every_official_key_set_fits(name: str, backbone: str, network: str) -> None:
    assert not compare(backbone, network, manifest(name)["state_dict"])


def test_every_manifest_is_compared() -> None:
    assert {path.stem for path in MANIFESTS.glob("*.json")} - {"checkpoint_layout"} == {*DENOISERS, *OTHERS}


def test_a_text_checkpoint_does_not_fit_an_image_backbone() -> None:
    report = compare("sd15_image", "denoiser", manifest("unet_ema_sd15_text")["state_dict"])
    assert report.misshaped == ("conv_in.weight is [320, 10, 3, 3], not [320, 11, 3, 3]",)
    assert not report.missing and not report.unexpected


def test_another_backbone_is_reported_in_groups_of_at_most_so_many_keys() -> None:
    report = compare("sdxl", "denoiser", manifest("unet_ema_sd15_text")["state_dict"])
    missing, unexpected, misshaped = report.lines()
    assert missing.startswith(f"missing ({len(report.missing)}): ") and missing.endswith(
        f" and {len(report.missing) - SHOWN} more"
    )
    assert len(report.missing) > SHOWN and missing.count(", ") == SHOWN - 1
    assert unexpected.startswith("unexpected (") and misshaped.startswith("mis-shaped (")


def written(folder: Path, config: dict[str, Any], class_name: str) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**config, "_class_name": class_name}))
    return path


@pytest.mark.parametrize("name", DENOISERS)
def test_official_configs_are_told_apart(name: str, tmp_path: Path) -> None:
    """Every official config.json is accepted for its own backbone and refused for others, both named."""
    file = manifest(name)
    path = written(tmp_path, file["config"], file["class"])
    # the two PixArts have the same denoiser, SD2.1 has no official one
    same = {"pixart_alpha": "pixart_sigma", "pixart_sigma": "pixart_alpha"}
    own = DENOISERS[name]
    text = own.removesuffix("_image")
    twin = own.replace(text, same.get(text, text))
    for backbone, spec in BACKBONES.items():
        if backbone in (own, twin):
            check_denoiser_config(spec, path)
        else:
            with pytest.raises(SourceError) as caught:
                check_denoiser_config(spec, path)
            assert own in str(caught.value) and f"but {backbone} was asked for" in str(caught.value)


def test_a_config_that_leaves_things_out_means_the_defaults(tmp_path: Path) -> None:
    """As diffusers reads it; and what whoever loads it overrides may be stale."""
    config = stock_config(manifest("unet_ema_sd15_text")["config"])
    kept = {name: config[name] for name in ("cross_attention_dim", "attention_head_dim")}
    path = written(tmp_path, {**kept, "sample_size": 64, "in_channels": 4}, "UNet2DConditionModel")
    check_denoiser_config(BACKBONES["sd15"], path)
