"""LPIPS with VGG-16 (Zhang et al. 2018): weighted differences of a classifier's features.

The published package needs torchvision; only its weights are read here, from two files:

    vgg16-397923af.pth   torchvision's VGG-16, in torch.hub's folder `checkpoints`
    vgg.pth              weights of the features' channels, inside the package `lpips` (extra `lpips`)

`LPIPS_WEIGHTS` may name another folder that holds both.
"""

import importlib.util
import os
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.perceptual.base import Perceptual, resized

_VGG_FILE, _HEADS_FILE = "vgg16-397923af.pth", "vgg.pth"
_VGG_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels and convolutions of each resolution
_MEAN, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of images in [-1, 1]: ImageNet's, as LPIPS has them


class LpipsFiles(NamedTuple):
    """Where the weights were looked for."""

    vgg: Path
    heads: Path | None  # None: the package is not installed

    @property
    def missing(self) -> list[str]:
        """What is not there, as the user may name it."""
        lacking = [] if self.vgg.is_file() else [str(self.vgg)]
        if self.heads is None or not self.heads.is_file():
            lacking.append(str(self.heads or f"{_HEADS_FILE} of the package lpips"))
        return lacking


def find_lpips() -> LpipsFiles:
    """The two files of weights, whether they are there or not."""
    folder = os.environ.get("LPIPS_WEIGHTS")
    if folder:
        return LpipsFiles(Path(folder) / _VGG_FILE, Path(folder) / _HEADS_FILE)
    package = importlib.util.find_spec("lpips")
    heads = None
    if package is not None and package.origin is not None:
        heads = Path(package.origin).parent / "weights" / "v0.1" / _HEADS_FILE
    return LpipsFiles(Path(torch.hub.get_dir()) / "checkpoints" / _VGG_FILE, heads)


class Lpips(Perceptual):
    """VGG-16's convolutions with one weight per channel of five of its layers."""

    def __init__(self, stages: tuple[tuple[int, int], ...] = _VGG_STAGES) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.taken: list[int] = []  # indices of the last ReLU of each resolution
        channels = 3
        for number, (width, count) in enumerate(stages):
            if number:
                layers.append(nn.MaxPool2d(2))
            for _ in range(count):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            self.taken.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)
        self.heads = nn.ParameterList(torch.zeros(1, width, 1, 1) for width, _ in stages)
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE)[:, None, None], persistent=False)

    def distance(self, first: Tensor, second: Tensor, size: int) -> Tensor:
        """[N, 3, H, W] in [0, 1], twice -> [N], over images resized to `size` pixels (0: as they are)."""
        count = len(first)
        hidden = resized(torch.cat([first, second]), size)
        hidden = (2.0 * hidden - 1.0 - self.mean) / self.scale
        total = first.new_zeros(count)
        for index, layer in enumerate(self.features):
            hidden = layer(hidden)
            if index in self.taken:
                unit = hidden / (hidden.norm(dim=1, keepdim=True) + 1e-10)
                head = self.heads[self.taken.index(index)]
                total = total + F.conv2d((unit[:count] - unit[count:]).square(), head).mean(dim=(1, 2, 3))
        return total


def open_lpips() -> Lpips:
    """LPIPS with its weights, frozen.

    Raises:
        ValueError: a file of weights is missing or not what it should be; the message names it.
    """
    files = find_lpips()
    if files.missing:
        raise ValueError(
            f"perceptual = 'lpips': no {' and no '.join(files.missing)}; install the extra lpips, and put "
            f"torchvision's {_VGG_FILE} there or set LPIPS_WEIGHTS to a folder with both. "
            "perceptual = 'ssim' needs no files"
        )
    assert files.heads is not None
    network = Lpips()
    try:
        vgg = torch.load(files.vgg, map_location="cpu", weights_only=True)
        convolutions = {name: tensor for name, tensor in vgg.items() if name.startswith("features.")}
        network.load_state_dict(convolutions, strict=False)
        heads = torch.load(files.heads, map_location="cpu", weights_only=True)
        for number, head in enumerate(network.heads):
            head.data.copy_(heads[f"lin{number}.model.1.weight"])
        absent = [name for name in network.features.state_dict() if f"features.{name}" not in convolutions]
        if absent:
            raise KeyError(f"features.{absent[0]}")
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise ValueError(f"{files.vgg}, {files.heads}: not the weights of LPIPS: {error}") from None
    return network.eval().requires_grad_(False)
