"""Rows of the printed table about surfaces, splats, frames of other sizes and sizes of objects."""

from collections.abc import Mapping
from typing import Any, NamedTuple

_SIZED = ("sphere", "cube", "cone", "cylinder")


class Row(NamedTuple):
    """One row; it is printed if its figure was measured."""

    name: str
    figure: str  # its name in the figures, with dots for what lies within another
    truth: str | None  # the same of true objects
    note: str


def figure_of(figures: Mapping[str, Any], name: str) -> Any:
    """A figure by its name with dots; None if it was not measured."""
    value: Any = figures
    for part in name.split("."):
        value = None if value is None else value.get(part)
    return value


def surface_rows(figures: Mapping[str, Any]) -> list[Row]:
    """What objects look like close by: generated ones, and beside them true ones as GSRecon and GSVAE make them."""

    def row(title: str, group: str, name: str, form: str, unit: str) -> Row:
        true, recon, vae = (figure_of(figures, f"grid_{group}.{of}.{name}") for of in ("true", "recon", "vae"))
        beside = [f"{of} {value:{form}}" for of, value in (("GSRecon", recon), ("GSVAE", vae)) if value is not None]
        truth = None if true is None else f"{true:{form}}"
        return Row(title, f"{group}.{name}", truth, f"{unit}; true objects through " + ", ".join(beside))

    rows = [
        row("fuzz", "surface", "fuzz", ".3f", "share of the outline"),
        row("fringe", "surface", "fringe_px", ".2f", "px at 256 px"),
        row("scale ratio", "splats", "scale_ratio", ".1f", "largest over smallest scale of a splat"),
        row("smallest scale", "splats", "smallest_px", ".2f", "px of the grid"),
        row("visible splats", "splats", "visible", ".0f", "per object"),
    ]
    if dead := figures.get("dead_pixels"):
        rows.append(Row("dead pixels", "dead_pixels.recon", None, f"share, of GSRecon; of GSVAE {dead['vae']:.3f}"))
    for network, sides in (figures.get("psnr_db_by_side") or {}).items():
        values = ", ".join(f"{value:.2f} dB at {side} px" for side, value in sides.items())
        rows.append(Row(f"{network}, by size", f"{network}_psnr_db", None, values))
    ratios = figure_of(figures, "covered_area.by_shape") or {}
    if shown := [f"{shape} {ratios[shape]:.2f}" for shape in _SIZED if shape in ratios]:
        rows.append(Row("large over small", "size_accuracy", None, "areas, over the true ratio: " + ", ".join(shown)))
    return rows
