"""A picture of stored objects: views, normals and positions of each, with its id and caption."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from training.data.record import PackedViews, unpack_views

_CELL = 112
_TEXT = 30
_GAP = 4
_MAX_LETTERS = 120
_INK, _WRONG = (50, 50, 50), (190, 20, 20)


class Entry(NamedTuple):
    """An object of the sheet."""

    title: str
    note: str  # the caption, or what is wrong
    views: PackedViews | None  # the views to show, if they can be read
    good: bool = True


def contact_sheet(entries: Sequence[Entry]) -> np.ndarray:
    """One row per object: its views, then normals of the first two and materials if it has them. uint8 [H, W, 3]."""
    rows = [_cells(entry.views) if entry.views is not None else [] for entry in entries]
    columns = max([4, *map(len, rows)])
    width = columns * (_CELL + _GAP) + _GAP
    sheet = Image.new("RGB", (width, len(entries) * (_CELL + _TEXT + _GAP) + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for number, (entry, cells) in enumerate(zip(entries, rows, strict=True)):
        top = _GAP + number * (_CELL + _TEXT + _GAP)
        for column, cell in enumerate(cells):
            image = Image.fromarray(cell).resize((_CELL, _CELL), Image.Resampling.BILINEAR)
            sheet.paste(image, (_GAP + column * (_CELL + _GAP), top))
        ink = _INK if entry.good else _WRONG
        for line, text in enumerate((entry.title, entry.note)):
            draw.text((_GAP, top + _CELL + 2 + 13 * line), text[:_MAX_LETTERS], fill=ink, font=font)
    return np.asarray(sheet)


def _cells(packed: PackedViews) -> list[np.ndarray]:
    views = unpack_views(packed)
    alphas = views.rgba[..., 3:]

    def shown(maps: np.ndarray) -> list[np.ndarray]:
        over_white = maps * alphas[: len(maps)] + 1.0 - alphas[: len(maps)]
        return list(np.rint(255.0 * np.clip(over_white, 0.0, 1.0)).astype(np.uint8))

    cells = shown(views.rgba[..., :3])
    if views.normals.shape[-1]:
        cells += shown(0.5 * views.normals[:2] + 0.5)
        covered = views.depths > 0
        near, far = (float(f(views.depths[covered])) if covered.any() else 1.0 for f in (np.min, np.max))
        scaled = 1.0 - 0.8 * (views.depths[:2, ..., None] - near) / max(far - near, 1e-6)
        cells += shown(np.repeat(scaled, 3, axis=-1))
    for maps in (packed.albedo, packed.metallic_roughness):
        if maps is not None:
            cells += shown(maps[:1].astype(np.float32) / 255.0)
    return cells
