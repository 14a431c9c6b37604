"""`diffsplat reconstruct VIEWS.npz`: views of an object -> the same files as `generate`, in OUT/<name of the file>/."""

import argparse
import dataclasses
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffsplat_client.commands.artifacts import (
    RECONSTRUCTION_FILE,
    VIEWER_FILE,
    check_tools,
    versions,
    write_description,
    write_object,
)
from diffsplat_client.commands.interrupts import leave_on_sigterm
from diffsplat_client.commands.jobs import slug
from diffsplat_client.commands.results import (
    add_options,
    add_result_arguments,
    move_files,
    print_result,
    warn_if_empty,
    with_film,
)
from diffsplat_client.commands.server import client_of
from diffsplat_client.errors import InvalidRequestError
from diffsplat_client.output_options import OUTPUT_OPTIONS
from diffsplat_client.poses import poses_of
from diffsplat_client.reconstruction import Reconstruction
from diffsplat_client.reconstruction_request import CAMERAS, MAPS, ReconstructionRequest
from diffsplat_client.viewer import write_viewer

STAGES = ("reconstruct", "rasterize", "package", "total")
_OPTIONS = tuple(name for name in OUTPUT_OPTIONS if name != "frame_poses")


def add_command(commands: Any) -> None:
    """Add the parser of `reconstruct`."""
    parser = commands.add_parser("reconstruct", help="make an object from views of it")
    arrays = ", ".join((*MAPS, *CAMERAS))
    parser.add_argument(
        "views", metavar="VIEWS", type=Path, help=f"an .npz file with arguments of Client.reconstruct: {arrays}"
    )
    add_result_arguments(parser)
    add_options(parser, _OPTIONS)
    parser.set_defaults(run=run)


def read_views(path: Path) -> dict[str, Any]:
    """The arrays of an .npz file; InvalidRequestError if the file is not an .npz or has unexpected arrays."""
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("one array alone")
        with file:
            arrays = dict(file)
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        raise InvalidRequestError(f"{path} is not an .npz file of plain arrays: must be one") from None
    if unknown := sorted(set(arrays) - {*MAPS, *CAMERAS}):
        raise InvalidRequestError(
            f"{path} has unexpected arrays {', '.join(unknown)}: must be some of {', '.join((*MAPS, *CAMERAS))}"
        )
    for name in ("images", "camera_to_world"):
        if name not in arrays:
            raise InvalidRequestError(f"{path} has no array {name}")
    return arrays


def run(args: argparse.Namespace) -> int:
    """Reconstruct, write, report; the frames are the given views, then an orbit at the elevation of the first."""
    options: dict[str, Any] = {name: getattr(args, name) for name in _OPTIONS if name in args}
    request = ReconstructionRequest(**read_views(args.views), **options).validate()
    views = poses_of(request.camera_to_world)
    elevation_deg, _, distance, _ = (float(value) for value in views[0])
    request = dataclasses.replace(request, frame_poses=with_film(args, views, elevation_deg, distance)).validate()
    check_tools(args.viewer, film=args.turntable_frames != 0 and args.video.endswith("mp4"))
    args.out.mkdir(parents=True, exist_ok=True)
    name = slug(args.views.stem)
    with (
        leave_on_sigterm(),
        client_of(args, timeout_s=args.timeout_s) as client,
        tempfile.TemporaryDirectory(prefix=".partial-", dir=args.out) as staging,
    ):
        made = client.reconstruct(request)
        folder = Path(staging)
        names = write_object(made, folder, len(views), args.video)
        if args.viewer:
            names.append(VIEWER_FILE)
            write_viewer(folder / VIEWER_FILE, made.cloud, args.views.stem, elevation_deg, distance=distance)
        names.append(RECONSTRUCTION_FILE)
        write_description(folder / RECONSTRUCTION_FILE, describe(made, client.server_parameters, names))
        paths = move_files(folder, names, args.out / name, args.overwrite)
    print_result(made.timings_ms, STAGES, f"{len(made.cloud)} splats", paths)
    return 1 if warn_if_empty(made) else 0


def describe(made: Reconstruction, server: Mapping[str, str], names: list[str]) -> dict[str, object]:
    """The request, the result and the versions, as JSON types; maps by their shape."""
    request = made.request
    maps = {name: list(np.shape(value)) for name in MAPS if (value := getattr(request, name)) is not None}
    cameras = {name: np.asarray(value).tolist() for name in CAMERAS if (value := getattr(request, name)) is not None}
    return {
        "request": maps | cameras | request.output_options().to_dict(),
        "splats": len(made.cloud),
        "timings_ms": {stage: round(milliseconds, 3) for stage, milliseconds in made.timings_ms.items()},
        "versions": versions(server, made.served),
        "files": names,
    }
