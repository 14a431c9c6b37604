"""`diffsplat convert`: every format to every other, and files that are not what they seem."""

import sys
from pathlib import Path

import numpy as np
import pytest
from diffsplat_client import read_splats, write_splats
from diffsplat_client.cli import main
from diffsplat_client.formats import FORMATS, FileFormat
from diffsplat_client.formats.axes import OPENGL

from tests.splat_clouds import LOSSES, Loss, largest_loss, make_cloud

each_source = pytest.mark.parametrize("source", FORMATS.values(), ids=FORMATS)
each_target = pytest.mark.parametrize("target", FORMATS.values(), ids=[f"to_{name}" for name in FORMATS])


@each_target
@each_source
def test_every_format_to_every_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: FileFormat, target: FileFormat
) -> None:
    cloud = make_cloud(60)
    start, end = tmp_path / f"in-{source.file_name}", tmp_path / f"out-{target.file_name}"
    write_splats(start, cloud, format=source.name)
    assert main(["convert", str(start), str(end), "--format", target.name]) == 0
    assert f"60 splats, {target.name}, axes {target.frame}" in capsys.readouterr().out
    allowed = Loss(*(a + b + 1e-5 for a, b in zip(LOSSES[source.name], LOSSES[target.name], strict=True)))
    loss = largest_loss(cloud, read_splats(end))
    assert all(changed <= most for changed, most in zip(loss, allowed, strict=True)), loss


@each_source
def test_content_goes_before_the_name(tmp_path: Path, source: FileFormat) -> None:
    """Files without a mark are known by their names alone."""
    cloud = make_cloud(5)
    path = tmp_path / ("a.jpg" if source.magic else "A.SPLAT")
    path.write_bytes(source.write(cloud))
    assert len(read_splats(path)) == 5


def test_the_format_follows_from_the_name_and_the_axes_from_the_options(tmp_path: Path) -> None:
    cloud = make_cloud(5)
    write_splats(tmp_path / "a.ply", cloud)
    assert (tmp_path / "a.ply").read_bytes() == FORMATS["ply"].write(cloud)
    assert main(["convert", str(tmp_path / "a.ply"), str(tmp_path / "b.splat"), "--frame", OPENGL]) == 0
    np.testing.assert_array_equal(read_splats(tmp_path / "b.splat", OPENGL).positions, cloud.positions)
    again = tmp_path / "c.ply"
    assert main(["convert", str(tmp_path / "b.splat"), str(again), "--input-frame", OPENGL]) == 0
    np.testing.assert_array_equal(read_splats(again).positions, cloud.positions)


@pytest.mark.parametrize(
    ("name", "content", "target", "message"),
    [
        ("a.ply", b"PNG....", "b.spz", r"a.ply: no file of splats: begins with b'PNG....': must be one of .glb, .ply"),
        ("a.spz", b"", "b.ply", "a.spz: no file of splats: begins with b''"),
        ("a.splat", b"12345", "b.ply", "a.splat: splat: 5 bytes: must be a multiple of 32"),
        ("a.ply", b"ply\n", "b.obj", "b.obj: ends with '.obj': must be one of .ply, .splat, .spz, .glb, .usdz, .sog"),
        ("a.sog", b"PK\x03\x04", "b.ply", "a.sog: sog: not a complete zip archive"),
    ],
)
def test_errors_name_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes, target: str, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert main(["convert", str(tmp_path / name), str(tmp_path / target)]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_missing_file_is_an_error_of_the_system(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(tmp_path / "a.ply"), str(tmp_path / "b.ply")]) == 1
    assert "No such file" in capsys.readouterr().err


def test_a_package_that_is_missing_is_named_with_its_extra(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    write_splats(tmp_path / "a.ply", make_cloud(2))
    assert main(["convert", str(tmp_path / "a.ply"), str(tmp_path / "b.spz"), "--format", "spz4"]) == 1
    assert "zstandard is not installed: pip install" in capsys.readouterr().err
