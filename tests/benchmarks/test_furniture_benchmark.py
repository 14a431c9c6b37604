"""The furniture benchmark: what it measures, and what its sheet may show."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor, nn

from benchmarks.furniture import configured, measure, psnr_db, sheet
from diffsplat.geometry.cameras import Cameras
from training.data.meshes.furniture_command import HELD_OUT_IDS
from training.data.meshes.job import Job, run_job
from training.data.meshes.rendering import RenderSettings

ROOT = Path(__file__).resolve().parents[2]


class Blank(nn.Module):
    """A network that shows nothing: transparent Gaussians."""

    def forward(self, images: Tensor, cameras: Cameras) -> Tensor:
        batch, views, _, height, width = images.shape
        grid = torch.zeros(batch, views, 12, height, width)
        grid[:, :, 10] = -1.0
        return grid


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("furniture")
    trimesh.creation.box().export(folder / "box.stl")
    for uid in ("seen", "free", "not-free"):
        outcome = run_job(Job(uid, folder / "box.stl", (uid,), folder, RenderSettings(resolution=64, samples=1)))
        assert not outcome.failure
    (folder / HELD_OUT_IDS).write_text("free\nnot-free\n")
    return folder


def test_held_out_objects_alone_are_measured_and_free_ones_alone_are_shown(data: Path) -> None:
    config = configured(data, data / "run", steps=60)
    config.check()
    assert config.optim.steps == 60
    measured = measure(config, {"before": Blank(), "after": Blank()})
    assert measured.uids == ["free", "not-free"]
    truth = measured.images["truth"]
    assert truth.shape == (2, 4, 3, 64, 64)
    white = torch.ones_like(truth)
    np.testing.assert_allclose(measured.images["before"], white, atol=2e-2)  # all that is left is the background
    assert measured.errors["before"].shape == (2, 2 * 4)  # the novel views of both rings
    assert psnr_db(torch.tensor([[0.01, 0.001]])) == pytest.approx(25.0, abs=1e-4)  # the mean of 20 and 30 dB
    picture = sheet(measured, frozenset({"free", "seen"}), ["before", "after"])
    assert picture.shape == (3 * 3 * 64, 2 * 3 * 3 * 64, 3)  # one object of the two, beside an empty place
    assert (picture[:, 3 * 3 * 64 :] == 255).all() and (picture[: 3 * 64, : 3 * 64] < 255).any()
    with pytest.raises(ValueError, match="none of the held-out objects is in the public domain"):
        sheet(measured, frozenset(), ["before", "after"])


def test_the_page_gives_the_measured_figures() -> None:
    (result,) = (ROOT / "benchmarks/results").glob("*/furniture.json")
    measured = json.loads(result.read_text())
    told = " ".join((ROOT / "docs/meshes.md").read_text("utf-8").split())
    every, unseen = (
        next(figures for name, figures in measured["figures"].items() if name.startswith(start))
        for start in ("all", "category never seen")
    )
    assert f"On {every['objects']} held-out objects" in told
    assert f"from {every['before_db']:.2f} dB to {every['after_db']:.2f} dB" in told
    assert f"in {measured['steps']:,} steps, {measured['seconds'] / 60:.0f} minutes" in told
    assert f"never saw: {unseen['before_db']:.2f} to {unseen['after_db']:.2f}" in told
