"""ElevEst: the DINOv2 backbone, the heads with the reference's stand-in backbone, and its training loss."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffsplat.images.dinov2 import DinoConfig, DinoV2
from diffsplat.images.elevest import ElevEst, elevation_losses
from diffsplat.images.prepare import elevation_input

STUB_POOLED = 8  # the stand-in backbone pools images to 8 x 8 and multiplies them by a matrix


def dino_config(options: dict[str, Any]) -> DinoConfig:
    """Ours from the reference's constructor arguments; what we do not build must have the only value we build."""
    fixed = {
        "ffn_layer": "mlp",
        "block_chunks": 0,
        "init_values": 1.0,
        "interpolate_antialias": True,
        "interpolate_offset": 0.0,
    }
    for name, value in fixed.items():
        assert options.pop(name, value) == value, name
    names = {
        "img_size": "image_size",
        "patch_size": "patch_size",
        "embed_dim": "dim",
        "depth": "num_blocks",
        "num_heads": "num_heads",
        "num_register_tokens": "num_registers",
        "mlp_ratio": "mlp_ratio",
    }
    return DinoConfig(**{names[name]: value for name, value in options.items()})


@torch.no_grad()
def test_backbone(golden, assert_close):
    """At the native size and at another one, where the position table is resized."""
    file = golden("dinov2_backbone")
    backbone = DinoV2(dino_config(dict(file.config["kwargs"]))).eval()
    backbone.load_state_dict(file.weights("backbone"))
    for case in file.cases:
        images, expected = file.case_in(case)["x"], file.out(case)
        tokens = backbone(images)
        assert_close(tokens.class_token, expected["x_norm_clstoken"], f"{case}/class_token")
        assert_close(tokens.registers, expected["x_norm_regtokens"], f"{case}/registers")
        assert_close(tokens.patches, expected["x_norm_patchtokens"], f"{case}/patches")


@pytest.fixture
def head_file(golden):
    return golden("elevest_head")


@pytest.fixture
def network(head_file) -> ElevEst:
    """The published heads' weights; their buffer says which bins they have."""
    weights = head_file.weights("elevest")
    bounds = weights["lower_bounds"].double()
    width = float(bounds[1] - bounds[0])
    dim = weights["cls_head.0.weight"].shape[1]
    network = ElevEst(nn.Identity(), dim, len(bounds), float(bounds[0]), float(bounds[-1]) + width)
    assert torch.equal(network.lower_bounds, weights["lower_bounds"])
    network.load_state_dict(weights)
    return network


def stub_token(images: Tensor, projection: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(images, STUB_POOLED).flatten(1) @ projection


@torch.no_grad()
def test_heads(head_file, network, assert_close):
    given, expected = head_file.case_in("predict_elev"), head_file.out("predict_elev")
    images = elevation_input(given["images"])
    reference = expected["normalised_images_strided"]
    stride = images.shape[-1] // reference.shape[-1]
    assert_close(images[..., ::stride, ::stride], reference, "normalised images")
    prediction = network.heads(stub_token(images, head_file.case_in("stub")["proj"]))
    assert_close(prediction.logits, expected["logits"], "logits")
    assert_close(prediction.offset_deg, expected["raw_offset"], "raw_offset")
    assert_close(network.internal_elevation_deg(prediction), expected["elevation_deg"], "elevation_deg")
    assert network.bin_width_deg == pytest.approx(expected["interval"].item())


def offset_weight(options: dict[str, Any], network: ElevEst) -> float:
    """The loss's option. Options of the bins must agree with the weights; unknown ones are refused by name."""
    low, width, count = float(network.lower_bounds[0]), network.bin_width_deg, len(network.lower_bounds)
    bins = [low, low + count * width, count, width]
    for name, value in options.items():
        if name not in ("dataset_name", "elevest_backbone_name", "elevest_reg_weight"):
            assert value in bins, f"the losses do not read {name} = {value}, and it is not among the bins {bins}"
    return options.get("elevest_reg_weight", 1.0)


@torch.no_grad()
def test_losses(head_file, network, assert_close):
    given, expected = head_file.case_in("compute_loss"), head_file.out("compute_loss")
    mean, std = (torch.tensor(head_file.config[name])[:, None, None] for name in ("imagenet_mean", "imagenet_std"))
    images = (given["image"].flatten(0, 1) - mean) / std  # in training they come at the network's size
    truth = torch.rad2deg(given["cam_pose_rad"][..., 0]).flatten()
    prediction = network.heads(stub_token(images, head_file.case_in("stub")["proj"]))
    weight = offset_weight(head_file.config["opt"], network)
    losses = elevation_losses(network, prediction, truth, offset_weight=weight)
    assert_close(losses.bins, expected["loss_cls"], "loss_cls")
    assert_close(losses.offset, expected["loss_offset"], "loss_offset")
    assert_close(losses.error_deg, expected["err_degree"], "err_degree")
    assert_close(losses.total, expected["loss"], "loss")
