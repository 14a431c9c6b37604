"""Requests -> views of generated objects.

The stages that are served generate them in batches, with the same requests and seeds as one by one.
"""

import statistics
import time
from collections.abc import Container, Sequence
from typing import NamedTuple

import numpy as np
import torch
from diffsplat_client.request import GenerationRequest
from torch import Tensor

from benchmarks.quality.progress import Advance
from benchmarks.quality.splats import Splats, splat_figures
from benchmarks.quality.surface import SURFACE_PX, Surface, surface
from benchmarks.quality.truth import views_elevation_deg
from diffsplat.backbones import BackboneSpec
from diffsplat.geometry.cameras import generated_view_cameras
from diffsplat.geometry.gaussians import from_array
from diffsplat.pipeline import Pipeline
from diffsplat.splats.render import render

_BATCH = 8
_MIN_ALPHA = 1e-3  # below it a pixel has no colour of its own
_TIMED, _WARM_UP = 7, 2


class Generated(NamedTuple):
    """N generated objects."""

    views: Tensor  # [N, V, 4, S, S], straight alpha
    splats: list[Splats]  # per object
    surfaces: list[Surface]  # of those that were looked at closely


def generate_views(
    pipeline: Pipeline, requests: Sequence[GenerationRequest], size: int, advance: Advance = lambda: None
) -> Tensor:
    """The views of `generate_objects`."""
    return generate_objects(pipeline, requests, size, advance).views


@torch.no_grad()
def generate_objects(
    pipeline: Pipeline,
    requests: Sequence[GenerationRequest],
    size: int,
    advance: Advance = lambda: None,
    close: Container[int] = (),
) -> Generated:
    """Generate every request's object and render its views.

    Args:
        pipeline: What generates.
        requests: N of them.
        size: Side of the views in pixels.
        advance: Called after each object.
        close: Rows of the requests whose objects' surfaces are judged too, at `SURFACE_PX`.
    """
    views: list[Tensor] = []
    splats: list[Splats] = []
    surfaces: list[Surface] = []
    spec = pipeline.encode.spec
    for start in range(0, len(requests), _BATCH):
        works = [pipeline.encode.run(request) for request in requests[start : start + _BATCH]]
        jobs = [pipeline.denoise.start(work) for work in works]
        while unfinished := [job for job in jobs if job.step < job.steps]:
            pipeline.denoise.step(unfinished)
        for job in jobs:
            made = pipeline.decode.run(job.latents, job.envelope).splats
            if len(views) in close:
                surfaces.append(surface(_seen(made, spec, SURFACE_PX)[:, 3]))
            views.append(_seen(made, spec, size))
            splats.append(splat_figures(made, spec.distance, spec.geometry.grid_size))
            advance()
    return Generated(torch.stack(views), splats, surfaces)


def seconds_per_asset(pipeline: Pipeline, prompts: Sequence[str]) -> float:
    """Median seconds from a prompt to PLY and four views of 256 px, one request at a time, default steps."""
    poses = four_poses(pipeline.encode.spec)
    seconds = []
    for turn in range(-_WARM_UP, _TIMED):
        request = GenerationRequest(prompts[turn % len(prompts)], seed=turn % 7, frame_poses=poses, formats=("ply",))
        started = time.perf_counter()
        pipeline.generate(request)
        if turn >= 0:
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def four_poses(spec: BackboneSpec) -> np.ndarray:
    """Rows of `GenerationRequest.frame_poses` for the views that the spec's denoiser generates."""
    views, elevation = spec.geometry.views, views_elevation_deg(spec)
    return np.array([[elevation, 360.0 / views * v, spec.distance, 1.0] for v in range(views)], np.float32)


def _seen(splats: Tensor, spec: BackboneSpec, size: int) -> Tensor:
    """[N, 14] -> [V, 4, S, S]."""
    cameras = generated_view_cameras(views_elevation_deg(spec), spec.distance, spec.geometry.views)
    seen = render(from_array(splats), cameras, size, size, spec.geometry, background=0.0)
    alpha = seen.alpha[0]
    return torch.cat([(seen.rgb[0] / alpha.clamp_min(_MIN_ALPHA)).clamp(0.0, 1.0), alpha], dim=1)
