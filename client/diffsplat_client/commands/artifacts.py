"""The files of one generation: splats.ply, views.png, turntable.mp4 or .gif, viewer.html, generation.json."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

from diffsplat_client.cloud import SplatCloud
from diffsplat_client.commands.films import write_gif, write_video
from diffsplat_client.contract import CONTRACT_VERSION
from diffsplat_client.formats import FORMATS, PLY
from diffsplat_client.generation import Generation, Served
from diffsplat_client.poses import DEFAULT_DISTANCE
from diffsplat_client.reconstruction import Reconstruction
from diffsplat_client.request import FILES
from diffsplat_client.viewer import check_viewer, write_viewer

VIEWS = 4  # the first frames of every request of the command line
VIEWS_FILE, VIEWER_FILE = "views.png", "viewer.html"
GENERATION_FILE, RECONSTRUCTION_FILE = "generation.json", "reconstruction.json"
FILM = "turntable"
# every file that a result may have: --overwrite deletes those that the new result lacks
RESULT_FILES = (
    *(format.file_name for format in FORMATS.values()),
    *(VIEWS_FILE, f"{FILM}.mp4", f"{FILM}.gif", VIEWER_FILE, GENERATION_FILE, RECONSTRUCTION_FILE),
)
VIDEOS = ("mp4", "gif", "fancy-mp4", "fancy-gif")  # fancy: two turns, the splats grow during the first


def write_artifacts(
    generation: Generation,
    server: Mapping[str, str],
    folder: Path,
    viewer: bool = True,
    video: str = "mp4",
    previews: Sequence[SplatCloud] = (),
) -> list[str]:
    """Write all files into an empty folder; returns their names, the description last.

    Args:
        generation: its frames are the four views, then the film.
        server: parameters that the server reported.
        folder: destination.
        viewer: whether to write viewer.html.
        video: kind of film, one of VIDEOS; only its file format matters here.
        previews: that viewer.html plays.
    """
    request = generation.request
    title = request.prompt.strip() or "Gaussian splats"
    distance = DEFAULT_DISTANCE if request.distance is None else request.distance
    names = write_object(generation, folder, VIEWS, video)
    if viewer:
        names.append(VIEWER_FILE)
        view = {"elevation_deg": generation.elevation_deg, "distance": distance}
        write_viewer(folder / VIEWER_FILE, generation.cloud, title, **view, previews=previews)
    names.append(GENERATION_FILE)
    write_description(folder / GENERATION_FILE, describe(generation, server, names))
    return names


def write_object(made: Generation | Reconstruction, folder: Path, views: int, video: str) -> list[str]:
    """Write splats, the first `views` frames as one image, and the others as a film; returns the files' names."""
    files = {FORMATS[name].file_name: file for name, file in made.assets.items()}
    if PLY.file_name not in files:  # always written: every viewer shows it as the frames do
        files = {PLY.file_name: PLY.write(made.cloud, made.request.frame), **files}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    names = [*files]
    frames = made.frames
    if frames is not None:
        names.append(VIEWS_FILE)
        write_views(folder / VIEWS_FILE, frames[:views])
        if len(frames) > views:
            write, suffix = (write_gif, "gif") if video.endswith("gif") else (write_video, "mp4")
            names.append(f"{FILM}.{suffix}")
            write(folder / names[-1], frames[views:])
    return names


def write_description(path: Path, description: Mapping[str, object]) -> None:
    """Write the result of `describe` as JSON."""
    path.write_text(json.dumps(description, indent=2, ensure_ascii=False) + "\n", "utf-8")


def describe(generation: Generation, server: Mapping[str, str], names: list[str]) -> dict[str, object]:
    """The request, the result and the versions, as JSON types; images by their hash."""
    request = generation.request
    images = {name: data for name in FILES if (data := getattr(request, name)) is not None}
    return {
        "request": request.to_dict()
        | {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in images.items()},
        "seed": generation.seed,
        "elevation_deg": generation.elevation_deg,
        "splats": len(generation.cloud),
        "timings_ms": {stage: round(milliseconds, 3) for stage, milliseconds in generation.timings_ms.items()},
        "warnings": list(generation.warnings),
        "versions": versions(server, generation.served),
        "files": names,
    }


def versions(server: Mapping[str, str], served: Served | None) -> dict[str, object]:
    """Versions of client, contract and server; what made this object stands above what the server said before."""
    made_by = {} if served is None else {**served._asdict(), "version": str(served.version)}
    return {"client": version("diffsplat-client"), "contract": CONTRACT_VERSION, "server": {**server, **made_by}}


def write_views(path: Path, frames: np.ndarray) -> None:
    """Write frames [F, H, W, 3] side by side as one PNG."""
    from PIL import Image

    Image.fromarray(np.concatenate(list(frames), axis=1)).save(path, format="PNG")


def check_tools(viewer: bool = True, film: bool = True) -> None:
    """Fail before the request is sent, not minutes later, if a package or program for writing files is missing.

    Raises:
        ModuleNotFoundError: a package of the extra `cli` is not installed, or, if wanted, of `viewer`.
        OSError: an MP4 `film` is wanted and ffmpeg is not found.
    """
    import PIL.Image
    import rich.progress

    assert PIL.Image and rich.progress
    if viewer:
        check_viewer()
    if not film:
        return
    import imageio_ffmpeg

    try:
        imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise OSError(f"turntable.mp4 needs ffmpeg: {error}") from None
