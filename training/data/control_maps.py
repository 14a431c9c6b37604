"""Control maps of training: what a ControlNet is shown of view 0. Serving takes the same of a user's picture.

All maps are RGB in [0, 1] on white, [3, S, S]; S is the spec's `hint_size`.
"""

import torch
from torch import Tensor

from diffsplat.backbones.spec import ControlType
from diffsplat.images.prepare import canny_hint, resize_antialiased
from training.data.dataset import Dataset
from training.data.sample import Sample


class ControlMaps:
    """Maps of one kind of a data set's objects, made when they are asked for.

    Args:
        kind: normal, depth or canny.
        objects: The data set.
        size: S.
    """

    def __init__(self, kind: ControlType, objects: Dataset, size: int) -> None:
        self.kind: ControlType = kind
        self.size = size
        self._views = Dataset(objects.source, num_input_views=1, num_views=1, pixel_rule=objects.pixel_rule)

    def of(self, index: int, view: int) -> Tensor:
        """The map of an object's recorded view, [3, S, S].

        Raises:
            BrokenRecord: it cannot be read.
        """
        return control_map(self.kind, self._views.seen_from(index, view), self.size)


def control_map(kind: ControlType, sample: Sample, size: int) -> Tensor:
    """The map of a sample's view 0, [3, S, S]; its normals are those of the sample's world."""
    image, alpha = sample.images_rgb[0], sample.alphas[0]
    if kind == "canny":
        return canny_hint(image, size)
    whole = sample.normals[0] if kind == "normal" else depth_map(sample.depths[0], alpha)
    return resize_antialiased(whole[None], size)[0].clamp(0, 1)


def depth_map(depths: Tensor, alphas: Tensor) -> Tensor:
    """Near is bright, far is dark, the background white: [1, H, W], [1, H, W] -> [3, H, W].

    Divided by the view's largest depth, so that the map does not depend on the unit.
    """
    covered = depths * alphas
    return (1.0 - covered / covered.max().clamp_min(torch.finfo(covered.dtype).tiny)).expand(3, -1, -1)
