"""The list of models: bundles and served repositories, what steers them, how they are stored, under which licence."""

import shutil
from pathlib import Path

import pytest

from diffsplat.backbones import BACKBONES
from diffsplat.bundle import Bundle
from diffsplat.catalogue import licence_note, list_models
from export.__main__ import main
from tests.families import write_family_bundle


def test_bundles_and_served_repositories_are_listed(
    tiny_bundle: Bundle, exported_repository: Path, tmp_path: Path
) -> None:
    """Below the folders that are named too; what is no model is passed over."""
    shutil.copytree(tiny_bundle.root, tmp_path / "bundles" / "tiny")
    write_family_bundle(tmp_path / "bundles" / "deeper" / "controlled", "sd15", ("depth", "canny"))
    (tmp_path / "bundles" / "notes").mkdir()
    entries, problems = list_models([tmp_path / "bundles", exported_repository])
    assert not problems
    controlled, tiny, served = entries
    assert (tiny.kind, tiny.backbone, tiny.conditions, tiny.precision) == ("bundle", "tiny", ("text",), "fp16")
    assert tiny.nbytes == sum(file["bytes"] for file in tiny_bundle.files.values())
    assert (controlled.conditions, controlled.precision) == (("text", "depth", "canny"), "fp32")
    assert (served.kind, served.backbone, served.precision) == ("served on cpu", "tiny", "fp32")
    assert served.nbytes > 0


def test_what_cannot_be_read_is_said_beside_the_list(
    tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_bundle.root, tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "bundle.json").write_text("{")
    assert main(["models", str(tmp_path)]) == 1
    output = capsys.readouterr()
    assert "good" in output.out and "bad" in output.err and "not readable as JSON" in output.err
    assert main(["models", str(tmp_path / "absent")]) == 1
    assert "no such folder" in capsys.readouterr().err


def test_every_backbone_has_a_licence_note() -> None:
    """Stated where the base model's own page states it; else the reader is sent there."""
    notes = {name: licence_note(name) for name in BACKBONES}
    assert all(notes.values())
    assert notes["sd15"] == notes["sd15_image"] == "CreativeML OpenRAIL-M"
    assert notes["sd3"] == "see the base model"
    assert notes["pico"] == "-"
