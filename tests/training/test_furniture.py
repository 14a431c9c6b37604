"""Furniture catalogues: entries, captions, what is held out, credits."""

import csv
import zipfile
from pathlib import Path

import pytest

from tests.training.mesh_files import gradient, write_obj
from training.data import command
from training.data.meshes import command as mesh_command
from training.data.meshes.furniture import HELD_OUT_CATEGORY, find_catalogues, read_models
from training.data.meshes.job import run_job

PROPERTIES = r"""# a comment
license=Public domain
id#1=Maker#chair
name#1=Arm Chair
tags#1=Blend Swap, Seat
category#1=Office
model#1=/maker/chair/chair.obj
width#1=100
depth#1=100
height#1=50
creator#1=Somebody
id#2=Maker#lamp
name#2=L\u00e4mp
tags#2=
category#2=Lights
model#2=/maker/lamp/lamp.obj
width#2=10
depth#2=10
height#2=10
modelRotation#2=1 0 0 0 0 1 0 -1 0
"""


@pytest.fixture
def catalogues(tmp_path: Path) -> Path:
    folder = tmp_path / "catalogues"
    folder.mkdir()
    with zipfile.ZipFile(folder / "Maker.sh3f", "w") as archive:
        archive.writestr("PluginFurnitureCatalog.properties", PROPERTIES)
        for name in ("chair", "lamp"):
            write_obj(tmp_path / name, name, "map_Kd texture.png\n", gradient(8))
            for path in (tmp_path / name).iterdir():
                archive.write(path, f"maker/{name}/{path.name}")
    return folder


def test_entries_become_models(catalogues: Path) -> None:
    chair, lamp = read_models(find_catalogues(catalogues))
    assert (chair.uid, chair.creator, chair.public_domain, chair.size) == (
        "maker-chair",
        "Somebody",
        True,
        (100, 50, 100),
    )
    assert chair.captions == ("arm chair", "arm chair, seat", "arm chair for the office")
    assert (lamp.name, lamp.tags, lamp.creator, lamp.captions) == ("Lämp", (), "unknown", ("lämp",))
    assert lamp.category == HELD_OUT_CATEGORY and lamp.held_out
    assert lamp.rotation == (1, 0, 0, 0, 0, 1, 0, -1, 0)


def test_furniture_is_rendered_with_its_lists(
    catalogues: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mesh_command, "process_outcomes", lambda jobs, workers: map(run_job, jobs))
    out = tmp_path / "out"
    options = ["--catalogues", str(catalogues), "--resolution", "16", "--samples", "1", "--workers", "1"]
    assert command.main(["furniture", str(out), *options]) == 0
    assert (out / "training_ids.txt").read_text() == "maker-chair\n"
    assert (out / "held_out_ids.txt").read_text() == "maker-lamp\n"
    assert (out / "maker-chair" / "txt").read_text().splitlines()[0] == "arm chair"
    rows = list(csv.DictReader((out / "attribution.csv").read_text(encoding="utf-8").splitlines()))
    assert [(row["uid"], row["creator"], row["licence"]) for row in rows] == [
        ("maker-chair", "Somebody", "Public domain"),
        ("maker-lamp", "unknown", "Public domain"),
    ]


def test_a_missing_or_broken_catalogue_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["furniture", str(tmp_path / "out"), "--catalogues", str(tmp_path)]) == 1
    assert "apt-get install sweethome3d-furniture" in capsys.readouterr().err
    (tmp_path / "broken.sh3f").write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"broken\.sh3f is not a furniture catalogue"):
        read_models(find_catalogues(tmp_path))
