"""`num_gaussians`: which splats a result keeps."""

import dataclasses

import numpy as np
import pytest
from diffsplat_client.formats import FORMATS
from diffsplat_client.request import GenerationRequest

from diffsplat.stages.envelope import Envelope
from diffsplat.stages.package import PackageStage, kept_rows


@pytest.fixture
def splats() -> np.ndarray:
    """200 splats of every opacity and size; the green channel is their number."""
    random = np.random.default_rng(0)
    splats = random.random((200, 14), dtype=np.float32)
    splats[:, 7:10] *= 0.05
    splats[:, 10:14] = [1, 0, 0, 0]
    splats[:, 4] = np.arange(200)
    return splats


def numbers(splats: np.ndarray, threshold: float, budget: int | None) -> list[int]:
    return splats[kept_rows(splats, threshold, budget), 4].astype(int).tolist()


def packaged(splats: np.ndarray, **options: object):
    request = GenerationRequest("x", **options)
    return PackageStage().run(splats, Envelope(request), splats)


@pytest.mark.parametrize("budget", [1, 50, 199])
def test_the_largest_products_of_opacity_and_radius_stay_in_their_order(splats: np.ndarray, budget: int) -> None:
    radii = np.sqrt(np.sort(splats[:, 7:10], axis=1)[:, 1:].prod(axis=1))
    best = np.argsort(-splats[:, 6] * radii)[:budget]
    assert numbers(splats, 0.0, budget) == sorted(best.tolist())


@pytest.mark.parametrize("budget", [200, 4_194_304, None])
def test_a_budget_that_is_not_used_up_changes_nothing(splats: np.ndarray, budget: int | None) -> None:
    assert packaged(splats, num_gaussians=budget).gaussians is splats


def test_equal_splats_stay_by_number(splats: np.ndarray) -> None:
    splats[:, 6:10] = splats[0, 6:10]
    assert numbers(splats, 0.0, 7) == list(range(7))
    splats[150, 6] = 1.0
    assert numbers(splats, 0.0, 7) == [*range(6), 150]


def test_nothing_below_the_threshold_fills_the_budget(splats: np.ndarray) -> None:
    above = np.flatnonzero(splats[:, 6] > 0.9)
    assert 0 < len(above) < 100
    assert numbers(splats, 0.9, 100) == above.tolist()
    assert set(numbers(splats, 0.9, 5)) < set(above.tolist())
    assert numbers(splats, 1.0, 5) == []


def test_splats_without_any_area_can_be_kept(splats: np.ndarray) -> None:
    splats[:, 7:10] = 0
    assert numbers(splats, 0.0, 3) == [0, 1, 2]


@pytest.mark.parametrize("name", FORMATS)
def test_files_and_raw_splats_have_the_same_splats(splats: np.ndarray, name: str) -> None:
    cloud = FORMATS[name].read(packaged(splats, num_gaussians=20, formats=(name,)).assets[name])
    expected = packaged(splats, num_gaussians=20).gaussians
    assert expected is not None and len(cloud) == len(expected) == 20
    assert np.abs(np.sort(cloud.positions, axis=0) - np.sort(expected[:, :3], axis=0)).max() < 1e-3


@pytest.mark.parametrize("name", FORMATS)
def test_splats_come_beside_files_that_clients_cannot_take_them_from(splats: np.ndarray, name: str) -> None:
    sent = packaged(splats, num_gaussians=20, formats=(name,)).gaussians
    assert (None if sent is None else len(sent)) == (20 if name in ("ply_compat", "usdz") else None)


def test_the_published_file_keeps_its_own_threshold(splats: np.ndarray) -> None:
    result = packaged(splats, num_gaussians=150, formats=("ply_compat",), opacity_threshold_render=0.5)
    assert result.gaussians is not None
    in_file = FORMATS["ply_compat"].read(result.assets["ply_compat"])
    assert len(in_file) == len(result.gaussians) < 150 and in_file.opacity.min() > 0.5


def test_the_answer_is_counted_by_its_budget() -> None:
    from diffsplat.serving.stage_models.answers import answer_bytes

    request = GenerationRequest("x", num_gaussians=10)
    assert answer_bytes(request, 1000) == (0, 560)
    assert answer_bytes(dataclasses.replace(request, num_gaussians=2000), 1000) == (0, 56_000)
