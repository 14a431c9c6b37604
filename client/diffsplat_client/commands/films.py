"""Films of frames: H.264 by ffmpeg, or an animated GIF. Files are either complete or absent."""

import subprocess
import tempfile
from pathlib import Path

import numpy as np

from diffsplat_client.files import atomic_path

FRAMES_PER_SECOND = 30
CRF = 10  # constant quality of x264, 0 .. 51; less is better


def write_video(path: Path, frames: np.ndarray) -> None:
    """Write frames [F, H, W, 3] as an H.264 film with its index first; OSError when ffmpeg fails or is killed."""
    import imageio_ffmpeg

    height, width = frames.shape[1:3]
    # 4:2:0 colour needs even sides: an odd last row or column is doubled
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{frames.shape[2]}x{frames.shape[1]}"]
    source += ["-r", str(FRAMES_PER_SECOND), "-i", "-"]
    film = ["-c:v", "libx264", "-crf", str(CRF), "-pix_fmt", "yuv420p", "-movflags", "+faststart"]
    with atomic_path(path) as partial:
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-nostdin", "-v", "error", *source, *film, str(partial)]
        _feed(command, frames, path.name)


def _feed(command: list[str], frames: np.ndarray, name: str) -> None:
    """Pipe frames to ffmpeg; OSError unless it exits by itself with status 0."""
    with (
        tempfile.TemporaryFile() as log,  # a pipe could fill up and block it
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log) as process,
    ):
        assert process.stdin is not None
        try:
            for frame in frames:
                process.stdin.write(np.ascontiguousarray(frame).data)
            process.stdin.close()
        except BrokenPipeError:  # it exited early: its status and log say why
            pass
        except BaseException:
            process.kill()
            raise
        status = process.wait()
        log.seek(0)
        lines = log.read().decode(errors="replace").strip().splitlines()
    if status:
        how = f"was killed by signal {-status}" if status < 0 else f"failed with exit code {status}"
        raise OSError(f"{name} was not written: ffmpeg {how}{': ' * bool(lines)}{' '.join(lines[-1:])}")


def write_gif(path: Path, frames: np.ndarray) -> None:
    """Write frames [F, H, W, 3] as an endless GIF, 256 colours per frame; its unit of time is 10 ms."""
    from PIL import Image

    first, *others = (Image.fromarray(frame).quantize() for frame in frames)
    duration_ms = round(1000 / FRAMES_PER_SECOND)
    with atomic_path(path) as partial:
        first.save(partial, format="GIF", save_all=True, append_images=others, duration=duration_ms, loop=0)
