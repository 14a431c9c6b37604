"""`python -m training data check PATH`: what is broken, and whether cameras, depths and normals fit together."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from PIL import Image

from training.config.common import Data
from training.data.checks import MAX_AIM_DEG, ObjectCheck, check_object
from training.data.contact_sheet import Entry, contact_sheet
from training.data.open_path import open_selected
from training.data.record import BrokenRecord, PackedViews
from training.data.record_source import RecordSource
from training.data.storage import replace_file
from training.data.views import pick_even
from training.report import with_time_left

_SHOWN_VIEWS = 4
_CHUNK = 16


@dataclass(frozen=True)
class Check:
    """Read objects, measure them, and count what is broken and why.

    The reprojection error is the distance in pixels between the points of one view and the surface that the nearest
    other view sees there: below a pixel if depths, cameras and the camera's angle belong together.
    """

    source: tyro.conf.Positional[Path]  # as `data.source` of a run
    objects: int = 256  # a random choice of so many; 0: all
    views: int = 12  # measured per object
    sheet: Path | None = None  # PNG to write: views of the first objects and of those with faults
    sheet_objects: int = 12
    report: Path | None = None  # JSON to write: all measurements
    captions: Path | None = None  # CSV of ids and captions
    ids: Path | None = None  # list of the objects to check
    uid_map: Path | None = None  # JSON from the source's ids to those of captions and list
    max_reprojection_px: float = 1.0  # larger errors are faults
    max_normal_deg: float = 25.0
    seed: int = 0


class Checked(dict[str, Any]):
    """One object: `uid`, `faults`, and its measurements."""


def main(arguments: list[str]) -> int:
    """Run the command; 0 if all objects are good, else 1."""
    command = tyro.cli(Check, prog="python -m training data check", args=arguments)
    for field in ("objects", "views", "sheet_objects"):
        if getattr(command, field) < (1 if field == "views" else 0):
            raise ValueError(f"{field} = {getattr(command, field)} is too small")
    data = Data(source=str(command.source), captions=command.captions, ids=command.ids, uid_map=command.uid_map,
                skip_broken=True)  # fmt: skip
    source = open_selected(data, None, ("rgb", "normal", "depth", "albedo", "metallic_roughness"))
    rng = np.random.default_rng(command.seed)
    count = min(len(source), command.objects or len(source))
    rows = sorted(rng.permutation(len(source))[:count].tolist())
    checked = list(_check_all(source, rows, command))
    print(summary(source, checked))
    if command.report is not None:
        text = json.dumps({"source": source.identity(), "objects": checked}, indent=1) + "\n"
        replace_file(command.report, lambda temporary: temporary.write_text(text))
    if command.sheet is not None:
        good = [entry for entry in checked if not entry["faults"]]
        shown = [*[entry for entry in checked if entry["faults"]][: command.sheet_objects // 2], *good]
        image = contact_sheet([_entry(source, entry) for entry in shown[: command.sheet_objects]])
        replace_file(command.sheet, lambda temporary: Image.fromarray(image).save(temporary, "PNG"))
        print(f"contact sheet: {command.sheet}")
    return int(any(entry["faults"] for entry in checked))


def summary(source: RecordSource, checked: Sequence[dict[str, Any]]) -> str:
    """Counts and medians, as lines."""
    faulty = [entry for entry in checked if entry["faults"]]
    kinds = Counter(kind for entry in faulty for kind in {_kind(fault) for fault in entry["faults"]})
    lines = [
        f"{source.store.path}: {len(source)} objects ({source.store.kind}), {len(checked)} checked, {len(faulty)} with "
        f"faults; maps: {', '.join(sorted(source.provides()))}"
    ]
    for field, what in (
        ("reprojection_px", "reprojection error, pixels"),
        ("normal_deg", "normals against depths, degrees"),
        ("aim_deg", "cameras past the origin, degrees"),
        ("orbit_deg", "cameras off their orbit, degrees"),
        ("distance", "distance of the first camera"),
    ):
        values = [entry[field] for entry in checked if entry.get(field) is not None]
        if values:
            lines.append(f"  {what:34} median {np.median(values):8.3f}   largest {max(values):8.3f}")
    lines += [f"  {number:6} x {kind}" for kind, number in kinds.most_common()]
    for entry in faulty[:5]:
        lines.append(f"  for example {entry['uid']}: {entry['faults'][0]}")
    return "\n".join(lines)


def _check_all(source: RecordSource, rows: Sequence[int], command: Check) -> Iterator[Checked]:
    chunks = [rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)]
    with ThreadPoolExecutor() as pool:
        for chunk in with_time_left(chunks, f"checking {len(rows)} objects"):
            yield from pool.map(lambda row: _check(source, row, command), chunk)


def _check(source: RecordSource, row: int, command: Check) -> Checked:
    entry = Checked(row=row, uid=source.uid(row), faults=[])
    try:
        usable = source.usable_views(row)
        if len(usable) < _SHOWN_VIEWS:
            raise BrokenRecord(f"{source.uid(row)}: has {len(usable)} usable views; at least {_SHOWN_VIEWS} are needed")
        pick_even(source.layout, _SHOWN_VIEWS, usable, np.random.default_rng(row))
        step = max(1, len(usable) // command.views)
        packed = source.views(row, usable[::step][: command.views])
        result = check_object(packed)
    except ValueError as error:
        entry["faults"].append(str(error).removeprefix(f"{source.uid(row)}: "))
        return entry
    values = {name: None if isinstance(value, float) and math.isnan(value) else value
              for name, value in result._asdict().items()}  # fmt: skip
    distance = float(np.linalg.norm(packed.camera_to_world_zup[0, :3, 3]))
    entry.update(values, distance=distance, views=len(usable), side=packed.rgba.shape[1])
    entry["faults"] += _faults(result, command)
    return entry


def _faults(result: ObjectCheck, command: Check) -> list[str]:
    """What is wrong with an object that can be read."""
    found = []
    if result.aim_deg > MAX_AIM_DEG:
        flipped = "; are they OpenGL's?" if result.aim_deg > 150.0 else ""
        found.append(f"cameras look {result.aim_deg:.1f} degrees past the origin{flipped}")
    elif result.orbit_deg > MAX_AIM_DEG:
        found.append(f"cameras are rolled by {result.orbit_deg:.1f} degrees")
    if result.reprojection_px > command.max_reprojection_px:
        found.append(f"reprojection error {result.reprojection_px:.2f} px: wrong depths, cameras or field of view")
    if result.lost_share > 0.1:
        found.append(f"{100 * result.lost_share:.0f} % of the surface is background in the next view")
    if result.normal_deg > command.max_normal_deg:
        found.append(f"normals are {result.normal_deg:.0f} degrees off the depths' surface: another frame or sign")
    if result.cut_views:
        found.append(f"the image's border cuts the object in {result.cut_views} views")
    if result.empty_views:
        found.append(f"{result.empty_views} views are empty")
    return found


def _kind(fault: str) -> str:
    """A fault without its numbers, for counting."""
    return re.sub(r"'\d{5}", "'*", re.sub(r"\[[^\]]*\]|\([^)]*\)|/\S+/|(?<![\w'])-?\d+(\.\d+)?", "N", fault))


def _entry(source: RecordSource, checked: dict[str, Any]) -> Entry:
    row, faults = checked["row"], checked["faults"]
    views: PackedViews | None = None
    try:
        usable = source.usable_views(row)
        views = source.views(row, usable[:: max(1, len(usable) // _SHOWN_VIEWS)][:_SHOWN_VIEWS])
    except ValueError:  # counted already; the sheet shows its words alone
        views = None
    error = checked.get("reprojection_px")
    title = checked["uid"] + ("" if error is None else f"   reprojection {error:.2f} px")
    note = faults[0] if faults else (source.caption(row, None) if "caption" in source.provides() else "")
    return Entry(title, note, views, good=not faults)
