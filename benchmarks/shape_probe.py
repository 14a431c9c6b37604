"""A small classifier of shapes, trained on true renders: the ruler for generated objects.

It sees the four views of an object at 32 px. What could give the shape away by accident is taken out: grey images,
normalised brightness. What generated objects have and true ones lack is put in: some blur and noise.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.data.record import RawViews
from training.data.synthetic import SHAPES, synthetic_object

PROBE_DATA_SEED = 9_000  # a series of objects that training never uses
_RING = 24  # views of the first ring of the camera layout
_EPOCHS = 12
_BATCH = 32


class TrueObjects(NamedTuple):
    """Renders of the generator."""

    images: Tensor  # [N, V, 3, H, W] in [0, 1] on white
    labels: Tensor  # [N] index into SHAPES


class ShapeProbe(nn.Module):
    """Convolutions on each view, mean over views, one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 16, 64), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(64, len(SHAPES))

    def forward(self, images: Tensor) -> Tensor:
        """[N, V, 3, 32, 32] in [0, 1] on white -> logits [N, shapes]."""
        darkness = 1.0 - images.mean(dim=2, keepdim=True)  # [N, V, 1, H, W], 0 on the background
        darkness = darkness / darkness.amax(dim=(1, 2, 3, 4), keepdim=True).clamp_min(1e-3)
        features = self.features(darkness.flatten(0, 1)).unflatten(0, images.shape[:2])
        return self.head(features.mean(dim=1))


def true_objects(first: int, count: int, size: int, num_views: int) -> TrueObjects:
    """Objects ``first .. first + count - 1`` of the probe's series, seen from a random start of the ring."""
    images, labels = [], []
    shapes = list(SHAPES)
    for index in range(first, first + count):
        made = synthetic_object(PROBE_DATA_SEED, index)
        start = int(np.random.default_rng([PROBE_DATA_SEED, index]).integers(_RING))
        views = [(start + k * _RING // num_views) % _RING for k in range(num_views)]
        images.append(_on_white(made.render(views, size)))
        labels.append(shapes.index(made.words.shape))
    return TrueObjects(torch.stack(images), torch.tensor(labels))


def train_probe(objects: TrueObjects, seed: int = 0) -> ShapeProbe:
    """Fit a probe; the same objects and seed give the same probe."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        probe = ShapeProbe()
    optimizer = torch.optim.AdamW(probe.parameters(), lr=2e-3)
    for _ in range(_EPOCHS):
        for rows in torch.randperm(len(objects.labels), generator=generator).split(_BATCH):
            loss = F.cross_entropy(probe(_augment(objects.images[rows], generator)), objects.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return probe.eval()


@torch.no_grad()
def probed_shapes(probe: ShapeProbe, images: Tensor) -> Sequence[str]:
    """[N, V, 3, 32, 32] -> the shape that the probe sees in each object."""
    shapes = list(SHAPES)
    return [shapes[index] for index in probe(images).argmax(dim=1).tolist()]


def _augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blur of random strength per object, and noise."""
    count, views, _, height, width = images.shape
    flat = images.flatten(1, 2)  # [N, V * 3, H, W]
    blurred = F.avg_pool2d(F.pad(flat, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    share = torch.rand(count, 1, 1, 1, generator=generator)
    mixed = flat + share * (blurred - flat)
    noisy = mixed + 0.02 * torch.randn(mixed.shape, generator=generator)
    return noisy.reshape(count, views, 3, height, width).clamp(0.0, 1.0)


def _on_white(views: RawViews) -> Tensor:
    rgba = torch.from_numpy(views.rgba).permute(0, 3, 1, 2)  # [V, 4, H, W]
    return rgba[:, :3] * rgba[:, 3:] + 1.0 - rgba[:, 3:]
