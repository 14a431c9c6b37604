"""bf16 and fp16 keep to the bounds that `python -m benchmarks.precision` states: one sampling run per family here."""

import math

import pytest

from benchmarks.precision import BOUNDS, EXCEPTIONS, PARTS, PRECISIONS, Row, golden_runs, holds
from diffsplat.graph import Precision

# the shortest runs, and SD1.5's under guidance, which is the least exact
RUNS = {
    "pipe_sd_text": "ddim_eta1",
    "pipe_sdxl_text": "ddim_eta0",
    "pipe_pixart_sigma_text": "dpm",
    "pipe_sd3_text": "flow_euler",
}


@pytest.mark.parametrize("part", RUNS)
def test_half_precision_keeps_the_bounds(part: str) -> None:
    rows = list(golden_runs(part, cases=[RUNS[part]]))
    assert [row.precision for row in rows] == list(PRECISIONS)
    assert not [row for row in rows if not holds(row)]
    assert all(row.latents_error > 1e-5 for row in rows), "these did not run in half precision"
    bf16, fp16 = rows
    assert fp16.latents_error < bf16.latents_error, "fp16 has three more bits"


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "figures", [(math.nan, 60.0, 60.0), (0.0, -math.inf, 60.0), (0.0, 60.0, -math.inf), (1.0, 60.0, 60.0)]
)
def test_a_bad_run_breaks_the_bounds(precision: Precision, figures: tuple[float, float, float]) -> None:
    assert BOUNDS[precision].hold(Row("a run", precision, 0.0, 60.0, 60.0))
    assert not BOUNDS[precision].hold(Row("a run", precision, *figures))


def test_exceptions_are_named_like_runs() -> None:
    assert EXCEPTIONS and {run.split()[0] for run, _ in EXCEPTIONS} <= set(PARTS)


def test_every_sampling_run_is_measured() -> None:
    assert len(PARTS) == 10 and set(RUNS) < set(PARTS)
