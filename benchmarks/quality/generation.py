"""Requests -> views of generated objects.

The stages that are served generate them in batches, with the same requests and seeds as one by one.
"""

import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from diffsplat_client.contract import GAUSSIAN_COLUMNS
from diffsplat_client.request import GenerationRequest
from torch import Tensor

from benchmarks.quality.progress import Advance
from benchmarks.quality.truth import views_elevation_deg
from diffsplat.backbones import BackboneSpec
from diffsplat.geometry.cameras import generated_view_cameras
from diffsplat.geometry.gaussians import from_array
from diffsplat.pipeline import Pipeline
from diffsplat.splats.render import render

_BATCH = 8
_MIN_ALPHA = 1e-3  # below it a pixel has no colour of its own
_VISIBLE = 1 / 255  # opacity below which a splat is not drawn
_TIMED, _WARM_UP = 7, 2


class Generated(NamedTuple):
    """N generated objects."""

    views: Tensor  # [N, V, 4, S, S], straight alpha
    visible_splats: list[int]  # per object


def generate_views(
    pipeline: Pipeline, requests: Sequence[GenerationRequest], size: int, advance: Advance = lambda: None
) -> Tensor:
    """The views of `generate_objects`."""
    return generate_objects(pipeline, requests, size, advance).views


@torch.no_grad()
def generate_objects(
    pipeline: Pipeline, requests: Sequence[GenerationRequest], size: int, advance: Advance = lambda: None
) -> Generated:
    """Generate every request's object and render its views at `size` pixels; calls `advance` after each."""
    views, visible = [], []
    for start in range(0, len(requests), _BATCH):
        works = [pipeline.encode.run(request) for request in requests[start : start + _BATCH]]
        jobs = [pipeline.denoise.start(work) for work in works]
        while unfinished := [job for job in jobs if job.step < job.steps]:
            pipeline.denoise.step(unfinished)
        for job in jobs:
            splats = pipeline.decode.run(job.latents, job.envelope).splats
            views.append(_seen(splats, pipeline.encode.spec, size))
            visible.append(int((splats[:, GAUSSIAN_COLUMNS["opacity"]] >= _VISIBLE).sum()))
            advance()
    return Generated(torch.stack(views), visible)


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
