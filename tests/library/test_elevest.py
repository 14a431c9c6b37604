"""ElevEst beyond the reference files: official size, bins and sign, the served graph."""

import json
import math
from pathlib import Path

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from diffsplat.images.dinov2 import DinoConfig
from diffsplat.images.elevest import (
    ElevationEstimator,
    ElevationPrediction,
    ElevEst,
    ElevEstConfig,
    build_elevest,
    elevation_losses,
)

MANIFEST = Path(__file__).parents[1] / "golden" / "manifests" / "elevest_dinov2_vitb14_reg.json"
TINY = ElevEstConfig(DinoConfig(image_size=70, dim=24, num_blocks=2, num_heads=3), input_size=42)


@pytest.fixture
def network() -> ElevEst:
    torch.manual_seed(0)
    return build_elevest(TINY).eval()


def prediction_of(bin_index: int, offset_deg: float) -> ElevationPrediction:
    return ElevationPrediction(F.one_hot(torch.tensor([bin_index]), 25).float(), torch.tensor([offset_deg]))


def test_parameters_are_those_of_the_official_checkpoint() -> None:
    manifest = json.loads(MANIFEST.read_text())
    with torch.device("meta"):
        network = build_elevest()
    assert {name: list(tensor.shape) for name, tensor in network.state_dict().items()} == manifest["state_dict"]
    assert sum(parameter.numel() for parameter in network.parameters()) == manifest["num_parameters"] == 87_784_730
    backbone = sum(parameter.numel() for parameter in network.backbone.parameters())
    assert backbone == manifest["num_parameters_backbone"] == 86_583_552


def test_bins_are_two_degrees_wide(network: ElevEst) -> None:
    assert network.lower_bounds.tolist() == list(range(-40, 10, 2))
    assert network.bin_width_deg == 2.0


@pytest.mark.parametrize(
    ("bin_index", "offset_deg", "internal_deg"),
    [(0, 0.5, -39.5), (15, 1.25, -8.75), (15, -3.0, -10.0), (15, 7.0, -8.0), (24, 2.0, 10.0)],
)
def test_offset_stays_in_its_bin(network: ElevEst, bin_index: int, offset_deg: float, internal_deg: float) -> None:
    assert network.internal_elevation_deg(prediction_of(bin_index, offset_deg)).item() == internal_deg


def test_the_served_sign_is_the_users(network: ElevEst) -> None:
    """A camera above the object: negative inside the network, positive for the user."""
    with torch.no_grad():
        network.cls_head[2].weight.zero_()
        network.cls_head[2].bias.copy_(F.one_hot(torch.tensor(10), 25))  # -20 .. -18
        network.offset_head[2].weight.zero_()
        network.offset_head[2].bias.fill_(0.5)
        elevation_deg = ElevationEstimator(network, 42)(torch.randn(2, 3, 42, 42))
    assert elevation_deg.tolist() == [19.5, 19.5]


@torch.no_grad()
def test_estimator_resizes_positions_once(network: ElevEst, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randn(3, 3, 42, 42, generator=torch.Generator().manual_seed(1))
    table, calls = type(network.backbone).position_table, []
    monkeypatch.setattr(
        type(network.backbone), "position_table", lambda self, *size: calls.append(size) or table(self, *size)
    )
    expected = -network.internal_elevation_deg(network(images))
    assert calls == [(42, 42)]
    estimator = ElevationEstimator(network, 42)
    assert len(calls) == 2
    assert torch.equal(estimator(images), expected)
    assert torch.equal(estimator(images[:1]), expected[:1])
    assert len(calls) == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's classic exporter
def test_estimator_runs_in_onnx_runtime(network: ElevEst, tmp_path: Path) -> None:
    """The antialiased table is a constant of the graph; the number of images is free."""
    estimator = ElevationEstimator(network, 42).eval()
    path = tmp_path / "elevest.onnx"
    torch.onnx.export(
        estimator,
        (torch.randn(2, 3, 42, 42),),
        path,
        input_names=["images"],
        output_names=["elevation_deg"],
        dynamic_axes={"images": {0: "B"}, "elevation_deg": {0: "B"}},
        opset_version=18,
        dynamo=False,
    )
    images = torch.randn(5, 3, 42, 42, generator=torch.Generator().manual_seed(2))
    (ours,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
        None, {"images": images.numpy()}
    )
    with torch.no_grad():
        expected = estimator(images)
    assert torch.allclose(torch.from_numpy(ours), expected, atol=1e-4)


def test_losses_refuse_an_elevation_outside_the_bins(network: ElevEst) -> None:
    for bad in (-40.5, 10.5, math.nan):
        with pytest.raises(ValueError, match=r"internal_elevation_deg.*-40 \.\. 10"):
            elevation_losses(network, prediction_of(0, 0.0), torch.tensor([bad]))


def test_losses_of_other_bins_and_offset_weight() -> None:
    network = ElevEst(nn.Identity(), 4, num_bins=6, lowest_deg=-30.0, highest_deg=15.0)
    assert network.lower_bounds.tolist() == [-30.0, -22.5, -15.0, -7.5, 0.0, 7.5]
    prediction = ElevationPrediction(torch.eye(6)[[2, 5]], torch.tensor([1.0, 7.0]))
    losses = elevation_losses(network, prediction, torch.tensor([-12.0, 15.0]), offset_weight=0.25)
    assert losses.bins == pytest.approx(math.log(math.e + 5) - 1)
    assert losses.offset == pytest.approx(((3.0 - 1.0) ** 2 + (7.5 - 7.0) ** 2) / 2)
    assert losses.total == losses.bins + 0.25 * losses.offset
    assert losses.error_deg == pytest.approx((2.0 + 0.5) / 2)
    with pytest.raises(ValueError, match="all must be in -30 .. 15"):
        elevation_losses(network, prediction, torch.tensor([-30.1, 0.0]))


def test_losses_at_the_edges(network: ElevEst) -> None:
    """Both ends belong to a bin; a perfect prediction has no offset loss and no error."""
    for truth, bin_index, offset in ((-40.0, 0, 0.0), (10.0, 24, 2.0), (-20.0, 10, 0.0)):
        losses = elevation_losses(network, prediction_of(bin_index, offset), torch.tensor([truth]))
        assert losses.offset == 0 and losses.error_deg == 0
        assert losses.total == losses.bins


def test_an_offset_outside_the_bin_learns_only_unclamped(network: ElevEst) -> None:
    def gradient(clamp_offset: bool) -> float:
        offset = torch.tensor([5.0], requires_grad=True)
        prediction = ElevationPrediction(torch.zeros(1, 25), offset)
        elevation_losses(network, prediction, torch.tensor([-20.0]), clamp_offset).total.backward()
        assert offset.grad is not None
        return offset.grad.item()

    assert gradient(clamp_offset=True) == 0.0
    assert gradient(clamp_offset=False) == 10.0


def test_config_refuses_sizes_that_are_not_whole_patches() -> None:
    with pytest.raises(ValueError, match="input_size = 225: must be a multiple of the patch size 14"):
        ElevEstConfig(input_size=225)
    with pytest.raises(ValueError, match=r"backbone\.image_size = 520"):
        ElevEstConfig(DinoConfig(image_size=520))
