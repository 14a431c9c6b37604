"""What a perceptual term is."""

import torch.nn.functional as F
from torch import Tensor, nn


class Perceptual(nn.Module):
    """A distance between images; its subclasses hold frozen networks."""

    def distance(self, first: Tensor, second: Tensor, size: int) -> Tensor:
        """[N, 3, H, W] in [0, 1], twice, resized to `size` pixels where the network sees them (0: not) -> [N]."""
        raise NotImplementedError


def resized(images: Tensor, size: int) -> Tensor:
    """[N, C, H, W] -> [N, C, size, size], bilinear without antialiasing as published; unchanged if `size` is 0."""
    if size in (0, images.shape[-1]) and (size == 0 or images.shape[-2] == size):
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
