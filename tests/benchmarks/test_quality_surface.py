"""The measures of surfaces, splats, counts and sizes on constructed objects, where the answer is known."""

import math

import cv2
import numpy as np
import pytest
import torch
from diffsplat_client.contract import GAUSSIAN_COLUMNS, GAUSSIAN_WIDTH
from torch import Tensor

from benchmarks.quality.cases import Case
from benchmarks.quality.counts import count_apart, is_counted
from benchmarks.quality.figures import figure_of, surface_rows
from benchmarks.quality.sizes import covered_area, judge_sizes
from benchmarks.quality.splats import dead_share, mean_figures, splat_figures
from benchmarks.quality.surface import SURFACE_PX, Surface, mean_surface, surface
from benchmarks.quality.truth import render_true, true_object, words_of
from diffsplat.backbones import NANO
from diffsplat.geometry.gaussians import GRID_LAYOUT
from training.data.procedural.object_words import ObjectWords
from training.data.procedural.synthetic_config import RICH_CONFIG

RADIUS = 80.0


def disc(edge_px: float, side: int = SURFACE_PX) -> np.ndarray:
    """Alpha of a disc whose edge falls linearly over so many pixels, [S, S]."""
    rows, columns = np.mgrid[:side, :side] + 0.5 - side / 2
    return np.clip(0.5 + (RADIUS - np.hypot(rows, columns)) / edge_px, 0, 1).astype(np.float32)


def judged(*alphas: np.ndarray) -> Surface:
    return surface(torch.from_numpy(np.stack(alphas)))


def test_a_clean_disc_has_no_fuzz_and_a_narrow_edge() -> None:
    clean = judged(disc(1.0))
    assert clean.fuzz < 0.002 and 0.5 < clean.fringe_px < 1.0


def test_fuzz_is_the_area_of_hairs_and_pits() -> None:
    area = math.pi * RADIUS**2
    hairs, pits = disc(1.0), disc(1.0)
    for angle in np.radians(np.arange(0, 360, 15)):  # 24 hairs, 24 px long and 2 wide, and as many cracks
        along = np.array([math.cos(angle), math.sin(angle)])
        for image, first, value in ((hairs, RADIUS - 4, 1.0), (pits, RADIUS - 24, 0.0)):
            ends = [
                tuple((SURFACE_PX / 2 + along * length).round().astype(int).tolist()) for length in (first, first + 24)
            ]
            cv2.line(image, *ends, color=value, thickness=2)
    for image in (hairs, pits):
        drawn = np.abs((image > 0.5).astype(float) - (disc(1.0) > 0.5)).sum()
        # and of the corners at their roots
        assert 0.95 < judged(image).fuzz / (drawn / area) < 1.4
    both = judged(hairs, disc(1.0))
    assert both.fuzz == pytest.approx(0.5 * judged(hairs).fuzz, rel=0.1), "over all views together"


@pytest.mark.parametrize("edge_px", [3.0, 6.0, 12.0])
def test_the_fringe_is_as_wide_as_the_edge(edge_px: float) -> None:
    found = judged(disc(edge_px))
    assert found.fringe_px == pytest.approx(0.8 * edge_px, rel=0.12)  # alphas of 0.1 to 0.9
    assert found.fuzz < 0.002, "a soft edge is not hair"


def test_an_object_that_covers_nothing_has_no_surface() -> None:
    nothing = judged(np.zeros((64, 64), np.float32))
    assert math.isnan(nothing.fuzz)
    assert mean_surface([nothing, Surface(0.1, 2.0)]) == {"fuzz": 0.1, "fringe_px": 2.0}
    assert mean_surface([nothing]) == {"fuzz": None, "fringe_px": None}


def test_only_visible_splats_count() -> None:
    splats = torch.zeros(5, GAUSSIAN_WIDTH)
    splats[:, GAUSSIAN_COLUMNS["opacity"]] = torch.tensor([0.9, 0.5, 0.1, 0.003, 0.0])[:, None]
    splats[:, GAUSSIAN_COLUMNS["scale"]] = torch.tensor([0.01, 0.02, 0.04])
    splats[3:, GAUSSIAN_COLUMNS["scale"]] = torch.tensor([0.001, 0.02, 0.08])
    found = splat_figures(splats, distance=1.4, side=64)
    assert found.visible == 3 and found.scale_ratio == pytest.approx(4.0)
    assert found.smallest_px == pytest.approx(0.01 * 64 * 1.3889 / 1.4, rel=0.01)
    none = splat_figures(splats[3:], 1.4, 64)
    assert none == (0, 0.0, 0.0)
    assert mean_figures([found, found, none])["visible"] == 3


def test_dead_pixels_are_solid_ones_without_a_splat() -> None:
    grids, alphas = torch.zeros(1, 4, 12, 8, 8), torch.zeros(1, 4, 1, 8, 8)
    alphas[..., :4, :] = 1.0
    alphas[..., 4, :] = 0.5  # an edge is not solid
    grids[..., GRID_LAYOUT["opacity"], :, :] = -1.0
    assert dead_share(grids, alphas) == 1.0
    grids[..., GRID_LAYOUT["opacity"], :3, :] = 0.0
    assert dead_share(grids, alphas) == 0.25


def row_of_discs(*places: tuple[int, int]) -> Tensor:
    """Views [4, 4, 64, 64] whose first shows discs of the given centres (x) and radii."""
    image = np.zeros((64, 64), np.float32)
    for x, radius in places:
        cv2.circle(image, (x, 32), radius, 1.0, -1)
    views = torch.zeros(4, 4, 64, 64)
    views[0, 3] = torch.from_numpy(image)
    return views


def test_objects_are_counted_where_they_stand_apart() -> None:
    assert count_apart(row_of_discs((16, 8), (32, 7), (48, 8))) == 3
    assert count_apart(row_of_discs((20, 9), (44, 9))) == 2
    assert count_apart(row_of_discs((26, 9), (40, 9))) == 1, "they touch"
    assert count_apart(row_of_discs((20, 9), (44, 3))) == 1, "a crumb is no object"
    assert count_apart(torch.zeros(4, 4, 64, 64)) == 0
    bridge = row_of_discs((20, 9), (44, 9))
    bridge[0, 3, 32, 20:44] = 1.0
    assert count_apart(bridge) == 2, "a hair between two does not join them"


def test_true_rows_have_their_count_and_no_other() -> None:
    for number in range(12):
        words = ObjectWords(("cube", "bunny", "sphere")[number % 3], "red", "large", grammar="rich", number="two")
        for count, other in (("two", "three"), ("three", "two")):
            words = words._replace(number=count)
            seen = render_true([true_object(words, number, RICH_CONFIG)], NANO, 64)[0]
            assert is_counted(seen, words) and not is_counted(seen, words._replace(number=other)), words


def test_sizes_are_compared_shape_by_shape() -> None:
    """Objects of one size, whatever is asked for, have a ratio of 1 where true ones have about 2.6."""
    facts = [words_of(shape, "red", RICH_CONFIG, size) for shape in ("sphere", "cube") for size in ("small", "large")]
    cases = [Case("size", words, "", 0) for words in facts]
    true = render_true([true_object(words, 400_000, RICH_CONFIG) for words in facts], NANO, 64)
    right = judge_sizes(cases, true, RICH_CONFIG, NANO)
    assert right is not None and right.by_shape == pytest.approx({"sphere": 1.0, "cube": 1.0})
    same = judge_sizes(cases, true[[0, 0, 2, 2]], RICH_CONFIG, NANO)
    areas = covered_area(true)
    assert same is not None and same.by_shape["sphere"] == pytest.approx(areas[0] / areas[1])
    assert 0.3 < same.by_shape["cube"] < 0.5


def test_rows_of_the_table_show_what_was_measured() -> None:
    figures = {
        "surface": {"fuzz": 0.05, "fringe_px": 5.0},
        "grid_surface": {"true": {"fuzz": 0.01, "fringe_px": 0.7}, "recon": {"fuzz": 0.02, "fringe_px": 3.0}},
        "psnr_db_by_side": {"recon": {"64": 27.0, "128": 25.5}},
    }
    rows = {row.name: row for row in surface_rows(figures)}
    assert rows["fuzz"].truth == "0.010" and "GSRecon 0.020" in rows["fuzz"].note and "GSVAE" not in rows["fuzz"].note
    assert rows["recon, by size"].note == "27.00 dB at 64 px, 25.50 dB at 128 px"
    assert "dead pixels" not in rows and figure_of(figures, "splats.visible") is None
