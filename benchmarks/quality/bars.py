"""What a bundle must reach, by the grammar it was trained on, and the printed table."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from benchmarks.quality.calibration import Calibration
from benchmarks.quality.figures import Row, figure_of, surface_rows


class Bar(NamedTuple):
    """A figure's limit."""

    figure: str
    limit: float
    at_least: bool = True

    def is_met(self, figures: Mapping[str, Any]) -> bool:
        """Whether the figure was measured and reaches the limit."""
        value = figure_of(figures, self.figure)
        return value is not None and (value >= self.limit if self.at_least else value <= self.limit)

    def __str__(self) -> str:
        return f"{self.figure} {'at least' if self.at_least else 'at most'} {self.limit:g}"


BARS: dict[str, tuple[Bar, ...]] = {
    "basic": (Bar("colour_accuracy", 0.90), Bar("shape_accuracy", 0.80)),
    "rich": (
        Bar("colour_accuracy", 0.90),
        Bar("shape_accuracy", 0.75),
        Bar("heldout_accuracy", 0.60),
        Bar("recon_psnr_db", 26.0),
        Bar("vae_drop_db", 1.5, at_least=False),
        Bar("seconds_per_asset", 4.0, at_least=False),
    ),
}  # of networks trained on CPUs


def missed_bars(figures: Mapping[str, Any], grammar: str) -> list[Bar]:
    """The bars that the figures miss."""
    return [bar for bar in BARS[grammar] if not bar.is_met(figures)]


def table(figures: Mapping[str, Any], grammar: str, calibration: Calibration) -> str:
    """All figures, the bars, and what the judges reach on true renders."""
    rows: list[Row] = [
        Row("colour", "colour_accuracy", f"{calibration.colour:.1%}", _parts(figures, "colour_accuracy")),
        Row("shape", "shape_accuracy", f"{calibration.shape:.1%}", _parts(figures, "shape_accuracy")),
        Row("held-out pairs", "heldout_accuracy", None, _held_out(figures)),
        Row("patterns", "pattern_accuracy", _percent(calibration.pattern), "both colours and the shape"),
        Row("relations", "relations_accuracy", _percent(calibration.relation), _fooled(calibration)),
        Row(
            "sizes",
            "size_accuracy",
            _percent(figure_of(figures, "covered_area.true_accuracy")),
            _areas(figures),
        ),
        Row("counts", "count_accuracy", _percent(calibration.counts), "two or three, and their colour"),
        Row("silhouette IoU", "silhouette_iou", f"{calibration.silhouette_iou:.3f}", "best of several true instances"),
        Row("recon", "recon_psnr_db", None, "dB on novel views of unseen objects"),
        Row("through the autoencoder", "vae_psnr_db", None, "dB"),
        Row("autoencoder costs", "vae_drop_db", None, "dB"),
        Row("per asset", "seconds_per_asset", None, "s, prompt to PLY and four views, median"),
    ]
    rows += surface_rows(figures)
    limits = {bar.figure: bar for bar in BARS[grammar]}
    lines = [f"{'':24} {'':>8} {'bar':>9} {'on truth':>9}"]
    for name, figure, truth, note in rows:
        value = figure_of(figures, figure)
        if value is None:
            continue
        shown = f"{value:.1%}" if figure.endswith("_accuracy") else f"{value:.3g}" if value < 10 else f"{value:.2f}"
        bar = limits.get(figure)
        limit = "" if bar is None else f"{'>=' if bar.at_least else '<='} {bar.limit:g}"
        verdict = "  MISSED" if bar is not None and not bar.is_met(figures) else ""
        lines.append(f"{name:24} {shown:>8} {limit:>9} {truth or '':>9}  {note}{verdict}".rstrip())
    return "\n".join(lines)


def _parts(figures: Mapping[str, Any], figure: str) -> str:
    if figures.get(f"{figure}_objects") is None:
        return ""
    return f"single shapes {figures[f'{figure}_shapes']:.1%}, composite objects {figures[f'{figure}_objects']:.1%}"


def _held_out(figures: Mapping[str, Any]) -> str:
    if figures.get("heldout_accuracy") is None:
        return ""
    return f"colour {figures['heldout_colour']:.1%}, shape {figures['heldout_shape']:.1%}"


def _areas(figures: Mapping[str, Any]) -> str:
    areas = figures.get("covered_area")
    if areas is None:
        return ""
    return (
        f"small shapes cover {areas['small']:.2f} of an image, large ones {areas['large']:.2f}; "
        f"true ones {areas['true_small']:.2f} and {areas['true_large']:.2f}"
    )


def _fooled(calibration: Calibration) -> str:
    if calibration.relation_fooled is None:
        return ""
    return f"true scenes taken for the opposite: {calibration.relation_fooled:.1%}"


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{value:.1%}"
