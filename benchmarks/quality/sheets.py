"""Images to look at: generated beside true objects, prompts of the README, turntables.

Images are numpy uint8 [H, W, 3].
"""

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from diffsplat_client.request import GenerationRequest
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from benchmarks.quality.generation import four_poses
from benchmarks.quality.judge import Verdict
from benchmarks.quality.truth import on_white, render_true, true_object
from diffsplat.backbones import BackboneSpec
from diffsplat.pipeline import Pipeline
from training.data.procedural.synthetic_config import SyntheticConfig

README_PROMPTS: dict[str, tuple[str, ...]] = {
    "basic": (
        "a red cube", "a blue sphere", "a green cone", "a yellow cylinder", "a purple sphere", "a cyan cube",
        "a small red sphere", "a large green cylinder",
    ),
    "rich": (
        "a toy robot", "a frog", "a teddy bear", "a panda", "a book", "a cookie", "a snowman", "a purple chair",
        "a house", "a red car", "a rocket", "a yellow mug", "a castle", "a cupcake", "a blue train",
        "a red and yellow striped sphere", "a red cube on top of a blue sphere", "a pink cone next to a green cube",
    ),
}  # fmt: skip
_SEED = 7
_FRAME, _TURNTABLE_FRAME = 256, 512
_TURNTABLE_AZIMUTHS, _TURNTABLE_ELEVATIONS = 6, (10.0, 45.0)
_GAP = 8
_MAX_CELLS = 64
_CELL_ROW = 64  # height of a row of views in the comparison sheet, at least
_TRUE_FIRST = 300_000  # numbers of true instances in the sheet
_INK, _FAILED = (60, 60, 60), (190, 30, 30)


class Cell(NamedTuple):
    """An image with a line under it."""

    image: np.ndarray
    caption: str
    good: bool = True  # the caption of a bad one is red


def comparison_sheet(
    verdicts: Sequence[Verdict], views: Tensor, config: SyntheticConfig, spec: BackboneSpec, columns: int = 8
) -> np.ndarray:
    """Generated views above those of a true object of the same words; a selection if there are many."""
    rows_of = _grouped(verdicts, lambda verdict: verdict.case.words)
    if len(rows_of) > _MAX_CELLS:
        rows_of = _grouped(verdicts, _kind)
    shown = [rows[number % len(rows)] for number, rows in enumerate(rows_of)]  # not always the first, which is red
    cells = []
    for row in shown:
        verdict, generated, words = verdicts[row], views[row], verdicts[row].case.words
        true = render_true([true_object(words, _TRUE_FIRST, config)], spec, generated.shape[-1])[0]
        rows = [np.concatenate(list(_pixels(on_white(one))), axis=1) for one in (generated, true)]
        rows = [_enlarged(row, _CELL_ROW) for row in rows]
        seen = f" ({verdict.noun})" if verdict.shape is False else " (colour)" if verdict.colour is False else ""
        cells.append(Cell(np.concatenate(rows), verdict.case.prompt + seen, verdict.right))
    return lay_out(cells, columns)


def prompts_sheet(pipeline: Pipeline, prompts: Sequence[str], columns: int = 3) -> np.ndarray:
    """Four generated views of each prompt in a row, 256 px each."""
    poses = four_poses(pipeline.encode.spec)
    cells = []
    for prompt in prompts:
        frames = _frames(pipeline, prompt, poses, _FRAME)
        cells.append(Cell(np.concatenate(list(frames), axis=1), prompt))
    return lay_out(cells, columns, text_px=22)


def write_turntables(folder: Path, pipeline: Pipeline, prompts: Sequence[str]) -> None:
    """A PNG per prompt with frames of 512 px all around it, a row per elevation: shows holes, floaters, flat backs."""
    folder.mkdir(parents=True, exist_ok=True)
    step = 360.0 / _TURNTABLE_AZIMUTHS
    poses = np.array(
        [
            [elevation, k * step, pipeline.encode.spec.distance, 1.0]
            for elevation in _TURNTABLE_ELEVATIONS
            for k in range(_TURNTABLE_AZIMUTHS)
        ],
        np.float32,
    )
    for prompt in prompts:
        frames = _frames(pipeline, prompt, poses, _TURNTABLE_FRAME)
        rows = np.split(frames, len(_TURNTABLE_ELEVATIONS))
        strip = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
        Image.fromarray(strip).save(folder / f"{prompt.replace(' ', '-')}.png")


def lay_out(cells: Sequence[Cell], columns: int, text_px: int = 13) -> np.ndarray:
    """Cells of one size in rows on white, captions centred under them."""
    height, width = cells[0].image.shape[:2]
    line = text_px + 8
    rows = -(-len(cells) // columns)
    size = columns * (width + _GAP) + _GAP, rows * (height + line + _GAP) + _GAP
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(text_px)
    for number, cell in enumerate(cells):
        left = _GAP + number % columns * (width + _GAP)
        top = _GAP + number // columns * (height + line + _GAP)
        sheet.paste(Image.fromarray(cell.image), (left, top))
        ink = _INK if cell.good else _FAILED
        draw.text((left + width / 2, top + height + 2), _shortened(cell.caption, font, width), ink, font, anchor="ma")
    return np.asarray(sheet)


def _grouped(verdicts: Sequence[Verdict], key: Callable[[Verdict], Hashable]) -> list[list[int]]:
    """Rows of the verdicts that share a key."""
    rows: dict[Hashable, list[int]] = {}
    for row, verdict in enumerate(verdicts):
        rows.setdefault(key(verdict), []).append(row)
    return list(rows.values())


def _kind(verdict: Verdict) -> tuple[str, ...]:
    """Of the verdicts that share this, one is shown."""
    group, words = verdict.case.group, verdict.case.words
    if group == "relation":
        return group, words.relation, words.shape
    return "single" if group in ("shape", "object", "spread") else group, words.shape, "coloured" * bool(words.colour)


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    while font.getlength(text) > width:
        text = text.removesuffix("…")[:-1] + "…"
    return text


def _frames(pipeline: Pipeline, prompt: str, poses: np.ndarray, size: int) -> np.ndarray:
    """[F, S, S, 3]."""
    frames = pipeline.generate(GenerationRequest(prompt, seed=_SEED, frame_poses=poses, frame_size=size)).frames
    assert frames is not None
    return frames


def _enlarged(image: np.ndarray, height: int) -> np.ndarray:
    """By a whole factor, to at least this height."""
    factor = -(-height // len(image))
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def _pixels(images: Tensor) -> np.ndarray:
    """[V, 3, S, S] in [0, 1] -> uint8 [V, S, S, 3]."""
    return (images.permute(0, 2, 3, 1) * 255.0).round().byte().numpy()
