"""Generation: the result of one request."""

import json
import time
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from diffsplat_client.cloud import SplatCloud
from diffsplat_client.contract import ASSET, FRAMES, GAUSSIANS, RECONSTRUCT_TIMINGS, SERVED, TIMING_TENSORS
from diffsplat_client.errors import ServerError
from diffsplat_client.formats import FileFormat, file_format
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
    asset: bytes | None  # a complete file in `request.format`; None for "raw"
    seed: int  # the requested one, or the one that the server drew: it reproduces the object
    elevation_deg: float  # of the four generated views
    timings_ms: dict[str, float] = field(
        default_factory=dict
    )  # milliseconds by stage; "total": as measured by this client
    warnings: tuple[str, ...] = ()  # for example that the prompt was cut
    served: Served | None = None  # None from a server of an older release


class Output(NamedTuple):
    """The part of a result that does not depend on how the splats were made; fields as in Generation."""

    cloud: SplatCloud
    frames: np.ndarray | None
    asset: bytes | None
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
        asset=output.asset,
        seed=status.seed,
        elevation_deg=status.elevation_deg,
        timings_ms=output.timings_ms,
        warnings=status.warnings,
        served=output.served,
    )


def parse_output(tensors: dict[str, np.ndarray], request: OutputOptions, started: float) -> Output:
    """The splats, frames and file of a result; errors and `started` as in `parse_generation`."""
    format, asset = file_format(request.format), tensors.get(ASSET.name)
    if format is not None and (asset is None or asset.size != 1):
        raise ServerError(f"the server finished without the requested {ASSET.name} ({format.name})")
    file = None if format is None or asset is None else bytes(asset.reshape(-1)[0])
    frames = tensors.get(FRAMES.name)
    wanted = 0 if request.frame_poses is None else len(request.frame_poses)
    expected = (wanted, request.frame_size, request.frame_size, 3)
    if wanted and (frames is None or frames.shape != expected or frames.dtype != np.uint8):
        found = "missing" if frames is None else f"{frames.dtype} {list(frames.shape)}"
        raise ServerError(f"{FRAMES.name} is {found}: must be uint8 {list(expected)}")
    cloud = _cloud(tensors, None if format is None or format.as_decoded else format, file, request.frame)
    timings_ms = _timings_ms(tensors) | {"total": 1e3 * (time.monotonic() - started)}
    return Output(cloud, frames if wanted else None, file, timings_ms, _served(tensors))


def _cloud(tensors: dict[str, np.ndarray], format: FileFormat | None, file: bytes | None, frame: str) -> SplatCloud:
    """The splats from the raw tensor, or decoded from the file that was sent instead of it."""
    try:
        if GAUSSIANS.name in tensors:
            return SplatCloud.from_array(tensors[GAUSSIANS.name])
        if format is not None and file is not None:
            return format.read(file, frame)
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
