"""`python -m training data convert` and `check`; rendered procedural objects; what happens when a disk is full."""

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.training.stored_objects import COUNT, VIEWS, records, uid_of, write_form
from training.data.checks import check_object
from training.data.command import main
from training.data.open_path import open_store
from training.data.procedural.source import ProceduralSource
from training.data.record import PackedViews, pack_views, unpack_views
from training.data.record_source import RecordSource
from training.data.rendered import RenderedSource
from training.data.resize import shrink_views
from training.data.storage import StorageError
from training.data.tar_store import write_tar


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, packed: list[PackedViews]) -> Path:
    root = tmp_path_factory.mktemp("stored")
    write_form("gobjaverse folder", root, packed)
    return root


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file may become larger, as on a disk with so much space left."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def convert_arguments(source: Path, out: Path, *more: str) -> list[str]:
    return ["convert", str(source), str(out), "--side", "12", "--objects-per-shard", "2", "--workers", "2", *more]


@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_converted_objects_are_the_shrunken_ones(
    form: str, stored: Path, tmp_path: Path, packed: list[PackedViews]
) -> None:
    (tmp_path / "captions.csv").write_text("\n".join(f"{10000 + n},thing {n}" for n in range(COUNT)))
    out = tmp_path / "out"
    arguments = convert_arguments(stored, out, "--form", form, "--captions", str(tmp_path / "captions.csv"))
    assert main(arguments) == 0
    source = RecordSource(open_store(out), range(COUNT), 12)
    assert source.provides() == {"rgb", "normal", "depth", "caption"} and source.blocks() is None
    original = RecordSource(open_store(stored), range(COUNT))
    for index in range(COUNT):
        expected = shrink_views(original.views(index, (0, 25)), 12)
        read = source.views(index, (0, 25))
        np.testing.assert_array_equal(read.rgba, expected.rgba)
        np.testing.assert_array_equal(read.normal_depth, expected.normal_depth)
        assert source.uid(index) == original.uid(index) and source.usable_views(index) == VIEWS
        assert source.caption(index, None) == f"thing {int(source.uid(index)[2:]) - 10000}"


def test_an_interrupted_conversion_goes_on(stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main(convert_arguments(stored, whole)) == 0
    code = "import sys; from training.data.command import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, *convert_arguments(stored, cut)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while not (cut / "00000.tar").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = (cut / "00000.tar").stat().st_mtime_ns
    assert main(convert_arguments(stored, cut)) == 0
    assert (cut / "00000.tar").stat().st_mtime_ns == kept
    for path in whole.glob("*.tar"):
        assert (cut / path.name).read_bytes() == path.read_bytes()
    assert main(convert_arguments(stored, cut, "--maps", "depth")) == 1
    assert "was converted with maps = ['depth', 'normal'], not ['depth']" in capsys.readouterr().err
    assert main(convert_arguments(stored, stored)) == 1
    assert "holds something else than converted objects" in capsys.readouterr().err


def test_a_full_disk_is_named_and_leaves_nothing_half_done(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with full_disk(20_000):
        assert main(convert_arguments(stored, out)) == 1
    assert f"{out}/00000.tar: cannot be written: File too large" in capsys.readouterr().err
    assert {path.name for path in out.iterdir()} == {"convert.json", "layout.json"}, "settings, and no part of a shard"
    assert main(convert_arguments(stored, out)) == 0


def test_broken_objects_are_left_out_only_when_asked(
    tmp_path: Path, packed: list[PackedViews], capsys: pytest.CaptureFixture[str]
) -> None:
    made = records(packed)
    made[1]["00006.png"] = b"no picture"
    write_tar(tmp_path / "in" / "0.tar", made)
    arguments = convert_arguments(tmp_path / "in", tmp_path / "out")
    assert main(arguments) == 1
    assert "1/10001: record part '00006.png' is not a readable PNG; --skip-broken" in capsys.readouterr().err
    assert main([*arguments, "--skip-broken"]) == 0
    assert len(open_store(tmp_path / "out")) == COUNT - 1
    assert list(json.loads((tmp_path / "out" / "broken.json").read_text())) == [uid_of(1)]
    wanting = convert_arguments(tmp_path / "in", tmp_path / "other", "--side", "99")
    assert main(wanting) == 1
    assert "images of 24 pixels are smaller than the 99" in capsys.readouterr().err


def test_check_measures_and_draws_good_objects(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["check", str(stored), "--sheet", str(tmp_path / "sheet.png"), "--report", str(tmp_path / "r.json")]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert f"{COUNT} checked, 0 with faults" in printed and "reprojection error" in printed
    facts = json.loads((tmp_path / "r.json").read_text())["objects"]
    assert len(facts) == COUNT and all(entry["reprojection_px"] < 0.1 for entry in facts)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape[0] > COUNT * 112 and sheet.std() > 5


def test_check_counts_what_is_broken_and_why(
    tmp_path: Path, packed: list[PackedViews], capsys: pytest.CaptureFixture[str]
) -> None:
    def with_cameras(number: int, turn: np.ndarray) -> PackedViews:
        cameras = packed[number].camera_to_world_zup.copy()
        cameras[:, :3, :3] = cameras[:, :3, :3] @ turn
        return packed[number]._replace(camera_to_world_zup=cameras)

    raw = unpack_views(packed[2])
    mirrored = pack_views(raw._replace(normals=raw.normals * np.float32([-1, 1, -1])))
    depths = packed[3].normal_depth.copy()
    depths[..., 3] = depths[..., 3] * 0.7
    made = records(
        [
            with_cameras(0, np.diag([1.0, -1.0, -1.0])),  # OpenGL's axes
            with_cameras(1, np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])),  # rolled
            packed[2]._replace(normal_depth=mirrored.normal_depth),
            packed[3]._replace(normal_depth=depths),
            packed[4],
            packed[5],
        ]
    )
    made[4]["00004.json"] = b"{}"
    write_tar(tmp_path / "0.tar", made)
    arguments = ["check", str(tmp_path), "--views", "24", "--report", str(tmp_path / "r.json")]
    assert main([*arguments, "--sheet", str(tmp_path / "sheet.png")]) == 1
    faults = {e["uid"]: " | ".join(e["faults"]) for e in json.loads((tmp_path / "r.json").read_text())["objects"]}
    assert "180.0 degrees past the origin; are they OpenGL's?" in faults[uid_of(0)]
    assert "rolled by 90.0 degrees" in faults[uid_of(1)]
    assert "another frame or sign" in faults[uid_of(2)]
    assert "% of the surface is background" in faults[uid_of(3)] or "reprojection" in faults[uid_of(3)]
    assert "is not a camera with fields x, y, z, origin" in faults[uid_of(4)]
    assert faults[uid_of(5)] == ""
    assert "5 with faults" in capsys.readouterr().out
    assert check_object(packed[5]).cut_views == 0


def test_unknown_commands_and_paths_are_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chekc"]) == 2
    assert main(["check", str(tmp_path / "none")]) == 1
    assert "does not exist" in capsys.readouterr().err


def test_procedural_objects_are_rendered_once_for_all_stages(tmp_path: Path) -> None:
    plain = ProceduralSource(3, 70, 8, pool_size=1)
    with full_disk(30_000), pytest.raises(StorageError, match="File too large"):
        RenderedSource(plain, tmp_path).prepare()
    assert not list(tmp_path.glob("*/*.tar"))
    first = RenderedSource(ProceduralSource(3, 64, 8, pool_size=1), tmp_path)
    first.prepare()
    (block,) = tmp_path.glob("*/*.tar")
    written = block.stat().st_mtime_ns
    more = RenderedSource(plain, tmp_path)  # continues: the first block stays
    for index in (0, 66):
        views = plain.usable_views(index)[::-1]
        for read, made in zip(more.views(index, views)[:3], plain.views(index, views)[:3], strict=True):
            np.testing.assert_array_equal(read, made)
    assert block.stat().st_mtime_ns == written and len(list(tmp_path.glob("*/*.tar"))) == 2
    smaller = RenderedSource(ProceduralSource(3, 70, 8, pool_size=0), tmp_path)
    smaller.prepare()
    assert block.stat().st_mtime_ns == written, "a smaller pool takes the same files"
    larger = RenderedSource(ProceduralSource(3, 5, 8, pool_size=2), tmp_path)
    larger.prepare()
    assert not block.exists() and len(larger.views(0, larger.usable_views(0)).rgba) == 6
    views = plain.usable_views(63)
    again = more.views(63, views)  # a run that reads meanwhile finds its objects all the same
    np.testing.assert_array_equal(again.rgba, plain.views(63, views).rgba)
    other = ProceduralSource(3, 5, 8, pool_size=1, config=dataclasses.replace(plain.config, colours=("red",)))
    assert other.pixels_key() != plain.pixels_key() == ProceduralSource(3, 9, 8).pixels_key()
