"""Films: complete with the index first, or an error and no file."""

import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from diffsplat_client.cli import main
from diffsplat_client.commands.films import write_video

NOISE = np.random.default_rng(0).integers(0, 255, (30, 64, 64, 3), np.uint8)


def test_odd_frame_sizes_make_a_film(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", np.zeros((5, 33, 33, 3), np.uint8))
    frames, seconds = imageio_ffmpeg.count_frames_and_secs(tmp_path / "a.mp4")
    assert frames == 5 and seconds == pytest.approx(5 / 30, abs=0.01)


def test_the_index_comes_before_the_frames(tmp_path: Path) -> None:
    """So that a browser plays a film while it loads."""
    write_video(tmp_path / "a.mp4", NOISE)
    data = (tmp_path / "a.mp4").read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")
    film = imageio_ffmpeg.read_frames(tmp_path / "a.mp4")
    next(film)  # the description
    shown = np.frombuffer(next(film), np.uint8).reshape(64, 64, 3)
    brightness = [frame.mean(axis=-1) for frame in (shown, NOISE[0])]  # colours lose half their detail
    assert np.abs(brightness[0] - brightness[1]).mean() < 40


@pytest.fixture(params=["killed", "fails", "fails at its end"])
def broken_ffmpeg(request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A program that takes the place of ffmpeg and breaks down after a good start."""
    endings = {"killed": "kill -9 $$", "fails": "echo 'No space left on device' >&2; exit 1"}
    read = "cat > /dev/null" if "end" in request.param else "head -c 1000 > /dev/null"
    ending = endings.get(request.param, "exit 228")
    program = tmp_path / "ffmpeg"
    program.write_text(f'#!/bin/sh\nfor last; do :; done\necho half > "$last"\n{read}\n{ending}\n')
    program.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
    return {
        "killed": "was killed by signal 9",
        "fails": "failed with exit code 1: No space left on device",
        "fails at its end": "failed with exit code 228",
    }[request.param]


def test_an_ffmpeg_that_breaks_down_is_an_error_and_leaves_nothing(tmp_path: Path, broken_ffmpeg: str) -> None:
    film = tmp_path / "films" / "a.mp4"
    with pytest.raises(OSError, match=f"a.mp4 was not written: ffmpeg {broken_ffmpeg}$"):
        write_video(film, np.concatenate([NOISE] * 4))  # more than a pipe holds
    assert not list(film.parent.iterdir())


def test_the_command_fails_with_its_film(fakes, serve_fake, tmp_path: Path, broken_ffmpeg: str, capsys) -> None:
    serve_fake(fakes.transport(fakes.finished(FRAMES=np.concatenate([NOISE[:1]] * 34))))
    out = tmp_path / "out"
    options = [f"--out={out}", "--no-viewer", "--turntable-frames=30", "--frame-size=64"]
    assert main(["generate", "--url=host:1", "x", *options]) == 1
    assert f"ffmpeg {broken_ffmpeg}" in capsys.readouterr().err
    assert not list(out.iterdir())


FULL_DISK = """
import resource, sys
from pathlib import Path
import numpy as np
from diffsplat_client.commands.films import write_video
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # writing on fails, as on a full disk
try:
    write_video(Path(sys.argv[1]), np.random.default_rng(0).integers(0, 255, (30, 64, 64, 3), np.uint8))
except OSError as error:
    print(error)
"""


def test_a_full_disk_is_an_error(tmp_path: Path) -> None:
    """The real ffmpeg."""
    script = [sys.executable, "-c", FULL_DISK, str(tmp_path / "a.mp4")]
    done = subprocess.run(script, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith("a.mp4 was not written: ffmpeg "), done.stderr
    assert not list(tmp_path.iterdir())
