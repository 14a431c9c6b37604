"""Views of objects that no bundle was trained on, as requests; what must come back."""

from typing import Any

import numpy as np
from diffsplat_client import Reconstruction
from diffsplat_client.reconstruction_request import ReconstructionRequest

from diffsplat.backbones import SplatGeometry
from diffsplat.reconstruction import ReconstructionResult
from training.data.dataset import Dataset
from training.data.procedural.source import ProceduralSource
from training.data.sample import Sample

FIRST_OBJECT = 500_000  # where the benchmark starts
UNSEEN_OBJECTS = 24
NOVEL_VIEWS = 3
RGB_ONLY = {"input_normal": False, "input_coord": False}  # of BackboneSpec.gsrecon


def unseen_samples(geometry: SplatGeometry, seed: int, count: int) -> list[Sample]:
    """Objects as the benchmark of reconstructions takes them: input views, then novel ones."""
    made = ProceduralSource(
        seed, count, geometry.grid_size, num_input_views=geometry.views, first_index=FIRST_OBJECT
    )  # fmt: skip
    source = Dataset(
        made, num_input_views=geometry.views, num_views=geometry.views + NOVEL_VIEWS, first_views=(0,),
        pixel_rule=geometry.unproject_pixel_rule,
    )  # fmt: skip
    return [source.sample(index, np.random.default_rng(index)) for index in range(count)]


def sample_request(sample: Sample, **options: Any) -> ReconstructionRequest:
    """The input views of a sample, with all maps."""
    count = len(sample.images_rgb) - NOVEL_VIEWS
    maps = (sample.images_rgb, sample.normals, sample.coords)
    images, normals, coords = (values[:count].permute(0, 2, 3, 1).numpy() for values in maps)
    cameras = (values[:count].numpy() for values in (sample.camera_to_world, sample.intrinsics))
    return ReconstructionRequest(images, *cameras, normals, coords, **options)


def assert_same_reconstruction(served: Reconstruction, right: ReconstructionResult) -> None:
    assert right.gaussians is not None and right.frames is not None and served.frames is not None
    array = served.cloud.to_array()
    assert array.shape == right.gaussians.shape
    assert np.abs(array - right.gaussians).max() <= 1e-5 * np.abs(right.gaussians).max()
    assert np.abs(served.frames.astype(int) - right.frames).max() <= 1
