"""The bundles that come with the repository: whole, small, and telling where they come from."""

from pathlib import Path

import pytest

from benchmarks.quality.truth import EVALUATION_SEED
from diffsplat.bundle import open_bundle

FOLDERS = sorted(path.parent for path in (Path(__file__).resolve().parents[2] / "bundles").glob("*/bundle.json"))
STAGES = {"nano": ["recon", "vae", "diffusion"], "pico": ["recon", "vae", "diffusion", "decoder"]}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_it_is_whole_and_names_its_training(folder: Path) -> None:
    """Every file has the size and hash that the bundle's record says; judges never see an object it was trained on."""
    stages = open_bundle(folder).lineage["stages"]
    assert list(stages) == STAGES[folder.name]
    for stage in stages.values():
        assert {"preset", "seed", "data", "steps", "revision", "metrics"} <= set(stage)
        assert stage["data"]["seed"] != EVALUATION_SEED


def test_a_clone_stays_small() -> None:
    assert {folder.name for folder in FOLDERS} == {"nano", "pico"}
    sizes = {file: file.stat().st_size for folder in FOLDERS for file in folder.iterdir()}
    assert max(sizes.values()) <= 16_000_000
    assert sum(sizes.values()) < 60_000_000
