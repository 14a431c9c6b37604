"""Generation: the result of one request."""

import json
import time
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from diffsplat_client.cloud import SplatCloud
from diffsplat_client.contract import (
    ASSET_FORMATS,
    ASSETS,
    FRAMES,
    GAUSSIANS,
    RECONSTRUCT_TIMINGS,
    SERVED,
    TIMING_TENSORS,
)
from diffsplat_client.errors import ServerError
from diffsplat_client.formats import FORMATS
from diffsplat_client.output_options import OutputOptions
from diffsplat_client.request import GenerationRequest
from diffsplat_client.status import Status


class Served(NamedTuple):
    """Which model made an object."""

    version: int  # of the served repository; grows with every refresh
    bundle: str  # its name
    bundle_digest: str


@dataclass(frozen=True, eq=False)
class Generation:
    """One finished object."""

    request: GenerationRequest
    request_id: str
    cloud: SplatCloud
    frames: np.ndarray | None  # uint8 [F, H, W, 3], one per row of `request.frame_poses`
    assets: dict[str, bytes]  # by format: complete files, those of `request.formats` but "raw"
    seed: int  # the requested one, or the one that the server drew: it reproduces the object
    elevation_deg: float  # of the four generated views
    timings_ms: dict[str, float] = field(
        default_factory=dict
    )  # milliseconds by stage; "total": as measured by this client
    warnings: tuple[str, ...] = ()  # for example that the prompt was cut
    served: Served | None = None  # None from a server of an older release
    index: int = 0  # which object of `request.num_seeds` it is


class Output(NamedTuple):
    """The part of a result that does not depend on how the splats were made; fields as in Generation."""

    cloud: SplatCloud
    frames: np.ndarray | None
    assets: dict[str, bytes]
    timings_ms: dict[str, float]
    served: Served | None


def parse_generation(
    tensors: dict[str, np.ndarray],
    request: GenerationRequest,
    request_id: str,
    status: Status,
    started: float,
) -> Generation:
    """Build the result from the tensors of all responses; ServerError if they break the contract.

    An ensemble pairs the outputs of its stages by their order of arrival, so a file may arrive with a progress
    message. `started` is a monotonic time.
    """
    output = parse_output(tensors, request, started)
    return Generation(
        request=request,
        request_id=request_id,
        cloud=output.cloud,
        frames=output.frames,
        assets=output.assets,
        seed=status.seed,
        elevation_deg=status.elevation_deg,
        timings_ms=output.timings_ms,
        warnings=status.warnings,
        served=output.served,
        index=status.index,
    )


def parse_output(tensors: dict[str, np.ndarray], request: OutputOptions, started: float) -> Output:
    """The splats, frames and files of a result; errors and `started` as in `parse_generation`."""
    assets = read_assets(tensors)
    for format in request.file_formats:
        if format.name not in assets:
            raise ServerError(f"the server finished without the requested file ({format.name})")
    frames = tensors.get(FRAMES.name)
    wanted = 0 if request.frame_poses is None else len(request.frame_poses)
    expected = (wanted, request.frame_size, request.frame_size, 3)
    if wanted and (frames is None or frames.shape != expected or frames.dtype != np.uint8):
        found = "missing" if frames is None else f"{frames.dtype} {list(frames.shape)}"
        raise ServerError(f"{FRAMES.name} is {found}: must be uint8 {list(expected)}")
    cloud = _cloud(tensors, assets, request.frame)
    timings_ms = _timings_ms(tensors) | {"total": 1e3 * (time.monotonic() - started)}
    return Output(cloud, frames if wanted else None, assets, timings_ms, _served(tensors))


def read_assets(tensors: dict[str, np.ndarray]) -> dict[str, bytes]:
    """The files of a result by their formats; ServerError if one has no format, or none that this client knows."""
    files, names = (tensors.get(spec.name, np.empty(0, np.object_)).reshape(-1) for spec in (ASSETS, ASSET_FORMATS))
    formats = [bytes(name).decode(errors="replace") for name in names]
    if len(files) != len(formats) or not set(formats) <= set(FORMATS):
        raise ServerError(f"{ASSETS.name} has {len(files)} files, {ASSET_FORMATS.name} says: {', '.join(formats)}")
    return {name: bytes(file) for name, file in zip(formats, files, strict=True)}


def _cloud(tensors: dict[str, np.ndarray], assets: dict[str, bytes], frame: str) -> SplatCloud:
    """The splats from the raw tensor, or decoded from the first file that was sent instead of it."""
    try:
        if GAUSSIANS.name in tensors:
            return SplatCloud.from_array(tensors[GAUSSIANS.name])
        for name, file in assets.items():
            if not FORMATS[name].splats_too:
                return FORMATS[name].read(file, frame)
    except ValueError as error:
        raise ServerError(f"the server's splats cannot be read: {error}") from None
    raise ServerError(f"the server finished without {GAUSSIANS.name}")


def _served(tensors: dict[str, np.ndarray]) -> Served | None:
    if SERVED.name not in tensors:
        return None
    try:
        values = json.loads(tensors[SERVED.name].item())
        return Served(int(values["version"]), str(values["bundle"]), str(values["bundle_digest"]))
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ServerError(f"{SERVED.name} is not the JSON that the contract describes") from None


def _timings_ms(tensors: dict[str, np.ndarray]) -> dict[str, float]:
    timings: dict[str, float] = {}
    for spec in (RECONSTRUCT_TIMINGS, *TIMING_TENSORS):
        if spec.name not in tensors:
            continue
        try:
            stages = json.loads(tensors[spec.name].reshape(-1)[0])
            timings.update((str(stage), float(milliseconds)) for stage, milliseconds in stages.items())
        except (ValueError, TypeError, AttributeError, IndexError, OverflowError, RecursionError):
            raise ServerError(f"{spec.name} is not a JSON object of milliseconds") from None
    return timings
