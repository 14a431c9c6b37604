"""The files of one generation: splats.ply, views.png, turntable.mp4, viewer.html, generation.json."""

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np

from diffsplat_client.contract import CONTRACT_VERSION
from diffsplat_client.formats.ply import write_ply
from diffsplat_client.generation import Generation
from diffsplat_client.poses import DEFAULT_DISTANCE
from diffsplat_client.viewer import check_viewer, write_viewer

VIEWS = 4  # the first frames of a request of the command line
FRAMES_PER_SECOND = 30
MAX_SLUG_CHARACTERS = 60


def slug(prompt: str) -> str:
    """A folder name from the words of a prompt: letters and digits of any script, dashes between them."""
    words = re.sub(r"[\W_]+", "-", unicodedata.normalize("NFKC", prompt).lower()).strip("-")
    if words and len(words) <= MAX_SLUG_CHARACTERS:
        return words
    digest = hashlib.sha256(prompt.encode()).hexdigest()[:8]  # keeps prompts with the same beginning apart
    return f"{words[: MAX_SLUG_CHARACTERS - 9].strip('-')}-{digest}".lstrip("-")


def write_artifacts(generation: Generation, server: Mapping[str, str], folder: Path, viewer: bool = True) -> list[str]:
    """Write all files, viewer.html if wanted, into an empty folder; returns their names, the description last."""
    names = ["splats.ply"]
    if generation.request.format == "ply" and generation.asset is not None:
        (folder / "splats.ply").write_bytes(generation.asset)
    else:
        write_ply(folder / "splats.ply", generation.cloud)
    frames = generation.frames
    if frames is not None:
        names.append("views.png")
        write_views(folder / "views.png", frames[:VIEWS])
        if len(frames) > VIEWS:
            names.append("turntable.mp4")
            write_video(folder / "turntable.mp4", frames[VIEWS:])
    if viewer:
        names.append("viewer.html")
        request = generation.request
        distance = DEFAULT_DISTANCE if request.distance is None else request.distance
        write_viewer(
            folder / "viewer.html", generation.cloud, request.prompt, generation.elevation_deg, distance=distance
        )
    names.append("generation.json")
    description = describe(generation, server, names)
    (folder / "generation.json").write_text(json.dumps(description, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return names


def describe(generation: Generation, server: Mapping[str, str], names: list[str]) -> dict[str, object]:
    """What was asked for, what came, and who made it."""
    return {
        "request": generation.request.to_dict(),
        "seed": generation.seed,
        "elevation_deg": generation.elevation_deg,
        "splats": len(generation.cloud),
        "timings_ms": {stage: round(milliseconds, 3) for stage, milliseconds in generation.timings_ms.items()},
        "warnings": list(generation.warnings),
        "versions": {"client": version("diffsplat-client"), "contract": CONTRACT_VERSION, "server": dict(server)},
        "files": names,
    }


def write_views(path: Path, frames: np.ndarray) -> None:
    """Frames [F, H, W, 3] side by side as one PNG."""
    from PIL import Image

    Image.fromarray(np.concatenate(list(frames), axis=1)).save(path, format="PNG")


def write_video(path: Path, frames: np.ndarray) -> None:
    """Frames [F, H, W, 3] as an H.264 film; OSError when ffmpeg fails."""
    import imageio_ffmpeg

    height, width = frames.shape[1:3]
    # 4:2:0 colour needs even sides: an odd last row or column is doubled
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    size = (frames.shape[2], frames.shape[1])
    writer = imageio_ffmpeg.write_frames(
        os.fspath(path),
        size,
        fps=FRAMES_PER_SECOND,
        codec="libx264",
        quality=8,
        macro_block_size=1,
        ffmpeg_log_level="error",
    )
    try:
        writer.send(None)
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))
    finally:
        writer.close()


def check_tools(viewer: bool = True) -> None:
    """Fail before the request is sent, not after minutes, when something that writes files is missing.

    Raises:
        ModuleNotFoundError: a package of the extra `cli` is not installed, or, if wanted, of `viewer`.
        OSError: ffmpeg is not found.
    """
    import imageio_ffmpeg
    import PIL.Image
    import rich.progress

    assert PIL.Image and rich.progress
    if viewer:
        check_viewer()
    try:
        imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise OSError(f"turntable.mp4 needs ffmpeg: {error}") from None
