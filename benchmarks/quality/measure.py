"""The whole measurement of one bundle, and the sweeps."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from benchmarks.quality.bars import missed_bars
from benchmarks.quality.cases import FULL, QUICK, Amounts, Case, all_cases, sweep_cases
from benchmarks.quality.generation import generate_objects, generate_views, seconds_per_asset
from benchmarks.quality.judge import Verdict, accuracies, judge, seed_spread
from benchmarks.quality.progress import Phases
from benchmarks.quality.reconstruction import reconstruct
from benchmarks.quality.ruler import RULER_SIZES, Ruler, RulerSize, build_ruler, ruler_phases
from benchmarks.quality.ruler_cache import CACHE, load_ruler, ruler_path, save_ruler
from benchmarks.quality.sizes import judge_sizes
from benchmarks.quality.truth import bundle_config
from diffsplat.bundle import Bundle
from diffsplat.pipeline import Pipeline
from training.data.synthetic_config import SyntheticConfig

SWEEPS: dict[str, tuple[float, ...]] = {"guidance_scale": (1.0, 2.0, 3.0, 5.0, 7.5), "steps": (5, 10, 20, 40)}
_GENERATED, _SWEPT, _RECONSTRUCTED, _TIMED = "generated objects", "sweeps", "reconstruction", "seconds per asset"


class Plan(NamedTuple):
    """How much is measured."""

    amounts: Amounts = FULL
    ruler: RulerSize | None = None  # the grammar's own by default
    recon_objects: int = 48
    sweep_prompts: int = 0  # asked again with every value of `SWEEPS`


QUICK_PLAN = Plan(QUICK, recon_objects=16)


class Measured(NamedTuple):
    """Figures for JSON, and what they were computed from."""

    figures: dict[str, Any]
    config: SyntheticConfig
    ruler: Ruler
    verdicts: list[Verdict]
    views: Tensor  # [N, V, 4, S, S] of the verdicts' objects


def measure(bundle: Bundle, plan: Plan, cache: Path = CACHE) -> Measured:
    """All figures of a bundle, judged at the resolution of its splat grids; fitted judges are kept in `cache`."""
    config = bundle_config(bundle)
    size = plan.ruler or RULER_SIZES[config.grammar]
    pixels = bundle.spec.geometry.grid_size
    cases = all_cases(config, plan.amounts)
    swept = sweep_cases(cases, plan.sweep_prompts)
    path = ruler_path(cache, config, bundle.spec, pixels, size)
    kept = load_ruler(path, config, bundle.spec, pixels)
    phases = {} if kept else ruler_phases(config, size)
    phases |= {_GENERATED: len(cases), _RECONSTRUCTED: 1, _TIMED: 1}
    if swept:
        phases[_SWEPT] = len(swept) * sum(len(values) for values in SWEEPS.values())
    with Phases(phases) as progress:
        ruler = kept
        if ruler is None:
            rendered, epoch_done = (progress.begin(name) for name in ruler_phases(config, size))
            ruler = build_ruler(config, bundle.spec, pixels, size, rendered, epoch_done)
            save_ruler(path, ruler)
        pipeline = Pipeline.from_bundle(bundle)
        requests = [case.request() for case in cases]
        views, visible_splats = generate_objects(pipeline, requests, pixels, progress.begin(_GENERATED))
        verdicts = judge(cases, views, ruler)
        sizes = judge_sizes(cases, views, config, bundle.spec)
        advance = progress.begin(_RECONSTRUCTED)
        reconstruction = reconstruct(bundle, config, plan.recon_objects)
        advance()
        advance = progress.begin(_TIMED)
        seconds = seconds_per_asset(pipeline, [case.prompt for case in cases[:7]])
        advance()
        sweeps = _sweep(pipeline, swept, pixels, ruler, progress) if swept else None
    figures: dict[str, Any] = {
        "bundle": bundle.spec.name,
        "digest": bundle.digest,
        "grammar": config.grammar,
        **accuracies(verdicts),
        "size_accuracy": sizes and sizes.accuracy,
        "covered_area": sizes and sizes._asdict(),
        "visible_splats": splat_figures(visible_splats),
        **reconstruction._asdict(),
        "seconds_per_asset": seconds,
        "seed_spread": seed_spread(verdicts, views),
        "sweeps": sweeps,
        "on_true_renders": ruler.calibration.plain(),
    }
    figures["missed"] = [str(bar) for bar in missed_bars(figures, config.grammar)]
    return Measured(figures, config, ruler, verdicts, views)


def splat_figures(visible: Sequence[int]) -> dict[str, float]:
    """Figures of the numbers of visible splats of N objects."""
    return {"objects": len(visible), "median": statistics.median(visible), "most": max(visible)}


def _sweep(
    pipeline: Pipeline, cases: Sequence[Case], pixels: int, ruler: Ruler, progress: Phases
) -> dict[str, dict[str, Any]]:
    """Option -> value -> shares of right colours, shapes and held-out pairs."""
    advance = progress.begin(_SWEPT)
    found: dict[str, dict[str, Any]] = {}
    for option, values in SWEEPS.items():
        for value in values:
            asked: dict[str, Any] = {option: int(value) if option == "steps" else value}
            views = generate_views(pipeline, [case.request(**asked) for case in cases], pixels, advance)
            shares = accuracies(judge(cases, views, ruler))
            kept = {name: shares[f"{name}_accuracy"] for name in ("colour", "shape", "heldout")}
            found.setdefault(option, {})[f"{value:g}"] = kept
    return found
