"""Runs over many meshes: what is found, finished, refused, resumed and reported, and on a Ray cluster."""

import importlib.util
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trimesh

from tests.training.mesh_files import save, write_obj
from training.data import command
from training.data.meshes import command as mesh_command
from training.data.meshes.batch import process_outcomes, shard_of
from training.data.meshes.job import PARTIAL, Job, run_job
from training.data.meshes.loading import MeshError, load_mesh
from training.data.meshes.names import caption_of, find_meshes, object_ids
from training.data.meshes.rendering import RenderSettings

ROOT = Path(__file__).parents[2]
SMALL = RenderSettings(resolution=16, samples=1)
OPTIONS = ["--resolution", "16", "--samples", "1", "--workers", "1"]


def job(source: Path, out: Path, uid: str = "a", **fields: object) -> Job:
    return Job(uid, source, ("a caption",), out, SMALL, **fields)  # type: ignore[arg-type]


class Deadly(Job):
    """Ends the process that receives it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (1,)


def test_meshes_are_found_named_and_captioned(tmp_path: Path) -> None:
    names = ["chairs/red_chair-02.obj", "chairs/red_chair-02.ply", "BigTable/scene.glb", "lamp/lamp.stl", "notes.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    paths = find_meshes(tmp_path)
    assert len(paths) == 4
    ids = dict(zip((str(path.relative_to(tmp_path)) for path in paths), object_ids(paths, tmp_path), strict=True))
    assert ids == {
        "BigTable/scene.glb": "BigTable-scene",
        "chairs/red_chair-02.obj": "chairs-red_chair-02-obj",
        "chairs/red_chair-02.ply": "chairs-red_chair-02-ply",
        "lamp/lamp.stl": "lamp",
    }
    captions = [caption_of(path) for path in paths]
    assert captions == ["big table", "red chair", "red chair", "lamp"]
    with pytest.raises(ValueError, match="does not exist"):
        find_meshes(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"holds no file with a suffix of \.glb"):
        find_meshes(tmp_path / "notes.txt")


def test_shards_divide_all_and_wrong_ones_are_refused() -> None:
    assert sorted(row for i in range(3) for row in shard_of(10, f"{i}/3")) == list(range(10))
    for wrong in ("3/3", "1", "a/b", "-1/2"):
        with pytest.raises(ValueError, match="must be i/n"):
            shard_of(10, wrong)


def test_meshes_that_cannot_be_rendered_say_why(tmp_path: Path) -> None:
    ten_million = tmp_path / "large.stl"  # says so in its header, and has them: as a hole on the disk
    with ten_million.open("wb") as file:
        file.write(bytes(80) + struct.pack("<I", 10_000_000))
        file.truncate(84 + 50 * 10_000_000)
    (tmp_path / "large.ply").write_text("ply\nformat ascii 1.0\nelement vertex 3\nelement face 10000000\nend_header\n")
    (tmp_path / "empty.obj").write_text("v 0 0 0\n")
    (tmp_path / "broken.glb").write_bytes(b"glTF and then nothing")
    (tmp_path / "broken.gltf").write_text("{")
    (tmp_path / "wrong.ply").write_text("ply\nformat ascii 1.0\nelement vertex 3\nelement face 1\nend_header\nx\n")
    (tmp_path / "point.obj").write_text("v 0 0 0\nv 0 0 0\nv 0 0 0\nf 1 2 3\n")
    (tmp_path / "nan.obj").write_text("v 0 0 nan\nv 0 1 0\nv 1 0 0\nf 1 2 3\n")
    reasons = {
        "large.stl": r"10,000,000 faces, at most 5,000,000",
        "large.ply": r"10,000,000 faces, at most 5,000,000",
        "empty.obj": "no faces",
        "broken.glb": "unreadable: .* not a binary glTF",
        "broken.gltf": "unreadable: .* glTF JSON",
        "wrong.ply": "unreadable",
        "point.obj": "largest side is 0",
        "nan.obj": "not finite",
    }
    for name, reason in reasons.items():
        outcome = run_job(job(tmp_path / name, tmp_path / "out"))
        assert outcome.source == str(tmp_path / name)
        with pytest.raises(AssertionError, match=reason):
            raise AssertionError(outcome.failure)
    assert not (tmp_path / "out").exists()
    path = write_obj(tmp_path, "quad", "Kd 1 1 1\n")
    with pytest.raises(MeshError, match="2 faces, at most 1"):
        load_mesh(path, max_faces=1)
    invisible = write_obj(tmp_path, "invisible", "Kd 1 1 1\nd 0\n")
    assert "nothing of it is visible" in run_job(job(invisible, tmp_path / "out")).failure


def test_a_run_reports_skips_and_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mesh_command, "process_outcomes", lambda jobs, workers: map(run_job, jobs))
    meshes, out = tmp_path / "meshes", tmp_path / "out"
    save(meshes / "ball.glb", trimesh.creation.icosphere(subdivisions=1))
    write_obj(meshes, "blue_square", "Kd 0 0 1\nmap_bump no.png\n")
    (meshes / "broken.glb").write_bytes(b"no")
    arguments = ["render", str(meshes), str(out), *OPTIONS]
    assert command.main(arguments) == 1
    printed = capsys.readouterr()
    assert "2 rendered, 0 finished before, 1 failed, of 3 objects" in printed.out
    assert f"failed: {meshes / 'broken.glb'}: unreadable" in printed.err
    report = json.loads((out / "report.json").read_text())
    assert list(report["failed"]) == ["broken"] and report["notes"] == {"blue_square": ["bump maps are ignored"]}
    assert (out / "blue_square" / "txt").read_text() == "blue square"

    # A half-written object is made again, a finished one is not.
    (out / PARTIAL / "ball").mkdir(parents=True)
    (out / "ball").rename(out / PARTIAL / "ball" / "half")
    before = (out / "blue_square" / "00000.png").stat().st_mtime_ns
    assert command.main([*arguments, "--allow-failures"]) == 0
    assert "1 rendered, 1 finished before, 1 failed" in capsys.readouterr().out
    assert len(list((out / "ball").iterdir())) == 201 and not (out / PARTIAL).exists()
    assert (out / "blue_square" / "00000.png").stat().st_mtime_ns == before
    assert "blue_square" in json.loads((out / "report.json").read_text())["notes"]

    assert command.main([*arguments, "--samples", "3"]) == 1
    assert f"{out} was rendered with samples = 1, not 3" in capsys.readouterr().err
    assert command.main(["render", str(meshes), str(meshes), *OPTIONS]) == 1
    assert "choose an empty folder" in capsys.readouterr().err


def test_a_process_that_dies_costs_its_object_alone(tmp_path: Path) -> None:
    path = write_obj(tmp_path, "quad", "Kd 1 1 1\n")
    jobs = [job(path, tmp_path, "first"), Deadly("deadly", path, (), tmp_path, SMALL), job(path, tmp_path, "last")]
    outcomes = {outcome.uid: outcome.failure for outcome in process_outcomes(jobs, 1)}
    assert set(outcomes) == {"first", "deadly", "last"}
    assert outcomes["first"] == outcomes["last"] == "" and "process that rendered it died" in outcomes["deadly"]
    assert (tmp_path / "first").is_dir() and (tmp_path / "last").is_dir()


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: pip install -e .[ray]")
def test_a_local_ray_cluster_renders_what_processes_do(tmp_path: Path) -> None:
    meshes = tmp_path / "meshes"
    write_obj(meshes, "red_square", "Kd 1 0 0\n")
    (meshes / "broken.glb").write_bytes(b"no")
    arguments = [sys.executable, "-m", "training", "data", "render", str(meshes)]
    ran = subprocess.run(
        [*arguments, str(tmp_path / "ray"), *OPTIONS, "--ray"], cwd=ROOT, capture_output=True, text=True
    )
    assert ran.returncode == 1, ran.stderr
    assert "1 rendered, 0 finished before, 1 failed, of 2 objects" in ran.stdout
    assert "broken.glb: unreadable" in ran.stderr
    run_job(Job("red_square", meshes / "red_square.obj", ("red square",), tmp_path / "here", SMALL))
    for path in (tmp_path / "here" / "red_square").iterdir():
        assert path.read_bytes() == (tmp_path / "ray" / "red_square" / path.name).read_bytes(), path.name


def test_ray_without_ray_says_how_to_install_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    path = write_obj(tmp_path / "meshes", "quad", "Kd 1 1 1\n")
    assert command.main(["render", str(path), str(tmp_path / "out"), *OPTIONS, "--ray"]) == 1
    assert r"pip install -e .[ray]" in capsys.readouterr().err
