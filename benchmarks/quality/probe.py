"""A small classifier of nouns, trained on true renders: the ruler for generated objects.

It sees outline and grey shading of all views. Clues that have nothing to do with shape are removed: hue, overall
brightness, and typical colours (every noun is shown in every colour). Flaws of generated objects that true ones lack
are added: blur, noise, an offset of a few pixels.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CHANNELS = (24, 48, 64, 96)
_LEARNING_RATE = 2e-3
_BATCH = 48


class LabelledViews(NamedTuple):
    """True objects."""

    views: Tensor  # [N, V, 4, S, S] straight alpha, in [0, 1]
    labels: Tensor  # [N] index into the nouns


class ShapeProbe(nn.Module):
    """Convolutions on each view, one layer over all of them in their order."""

    def __init__(self, nouns: int, views: int, size: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 2
        for channels in _CHANNELS[: 3 if size <= 32 else 4]:
            layers += [nn.Conv2d(width, channels, 3, 2, 1), nn.GroupNorm(8, channels), nn.ReLU()]
            width, size = channels, (size + 1) // 2
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * size * size, 96), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(96 * views, nouns))

    def forward(self, views: Tensor) -> Tensor:
        """[N, V, 4, S, S] -> logits [N, nouns]."""
        features = self.features(outline_and_shading(views).flatten(0, 1)).unflatten(0, views.shape[:2])
        return self.head(features.flatten(1))


def outline_and_shading(views: Tensor) -> Tensor:
    """[N, V, 4, S, S] -> [N, V, 2, S, S]: alpha, and grey in units of the object's own mean, 0 on the background."""
    alpha = views[:, :, 3:]
    grey = views[:, :, :3].mean(dim=2, keepdim=True) * alpha
    mean = grey.sum(dim=(1, 2, 3, 4), keepdim=True) / alpha.sum(dim=(1, 2, 3, 4), keepdim=True).clamp_min(1.0)
    return torch.cat([alpha, grey / mean.clamp_min(0.02)], dim=2)


def train_probe(
    objects: LabelledViews, nouns: int, epochs: int, seed: int = 0, on_epoch: Callable[[], None] = lambda: None
) -> ShapeProbe:
    """Fit a probe; the same objects and seed give the same probe."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        probe = ShapeProbe(nouns, objects.views.shape[1], objects.views.shape[-1])
        optimizer = torch.optim.AdamW(probe.parameters(), lr=_LEARNING_RATE, weight_decay=0.05)
        steps = epochs * -(-len(objects.labels) // _BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=steps)
        for _ in range(epochs):
            for rows in torch.randperm(len(objects.labels), generator=generator).split(_BATCH):
                seen = _augment(objects.views[rows].float(), generator)
                loss = F.cross_entropy(probe(seen), objects.labels[rows], label_smoothing=0.05)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            on_epoch()
    return probe.eval()


@torch.no_grad()
def seen_nouns(probe: ShapeProbe, views: Tensor, nouns: tuple[str, ...]) -> list[str]:
    """[N, V, 4, S, S] -> the noun that the probe sees in each object."""
    return [nouns[index] for chunk in views.split(256) for index in probe(chunk.float()).argmax(dim=1).tolist()]


def _augment(views: Tensor, generator: torch.Generator) -> Tensor:
    """Per object: blur of random strength, noise, a shift of all views by the same few pixels."""
    count, number, _, size, _ = views.shape
    flat = torch.cat([views[:, :, :3] * views[:, :, 3:], views[:, :, 3:]], dim=2).flatten(1, 2)  # [N, V * 4, S, S]
    blurred = F.avg_pool2d(F.pad(flat, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    share = torch.rand(count, 1, 1, 1, generator=generator)
    mixed = flat + share * (blurred - flat)
    reach = max(size // 24, 1)
    shifts = torch.randint(-reach, reach + 1, (2,), generator=generator).tolist()
    mixed = torch.roll(mixed, shifts, dims=(2, 3)).unflatten(1, (number, 4))
    alpha = mixed[:, :, 3:].clamp(0.0, 1.0)
    rgb = mixed[:, :, :3] / alpha.clamp_min(1e-3)
    noise = 0.1 * torch.rand(count, 1, 1, 1, 1, generator=generator)
    noisy = rgb + noise * rgb.mean() * torch.randn(rgb.shape, generator=generator)
    return torch.cat([noisy.clamp(0.0, 1.0), alpha], dim=2)
