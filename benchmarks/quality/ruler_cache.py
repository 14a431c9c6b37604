"""Fitted rulers, kept below `build/quality` and used again until the code or data behind them changes."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.quality.calibration import Calibration
from benchmarks.quality.colour import ColourRule
from benchmarks.quality.probe import ShapeProbe
from benchmarks.quality.ruler import Ruler, RulerSize
from benchmarks.quality.truth import nouns_of
from diffsplat.backbones import BackboneSpec
from training.data.procedural.synthetic_config import SyntheticConfig

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "quality"
_JUDGES = ("truth", "probe", "colour", "relations", "counts", "silhouette", "calibration", "ruler")
_SOURCES = ("training/data", "diffsplat/geometry/cameras.py", *(f"benchmarks/quality/{name}.py" for name in _JUDGES))


def ruler_path(folder: Path, config: SyntheticConfig, spec: BackboneSpec, pixels: int, size: RulerSize) -> Path:
    """Where below `folder` the ruler of these arguments and this code is kept."""
    content = hashlib.sha256()
    for source in _SOURCES:
        found = ROOT / source
        for path in sorted(found.rglob("*.py")) if found.is_dir() else [found]:
            content.update(path.read_bytes())
    views = [spec.geometry.views, spec.elevation_deg, pixels, torch.__version__]
    content.update(json.dumps([asdict(config), views, size], sort_keys=True).encode())
    return folder / f"{config.grammar}-{content.hexdigest()[:16]}.safetensors"


def save_ruler(path: Path, ruler: Ruler) -> None:
    """Write a ruler in one move."""
    tensors = {f"probe.{name}": tensor for name, tensor in ruler.probe.state_dict().items()}
    tensors |= {f"outlines.{noun}": outlines for noun, outlines in ruler.outlines.items()}
    tensors |= {"colours.usual": ruler.colours.usual, "colours.spread": ruler.colours.spread}
    path.parent.mkdir(parents=True, exist_ok=True)
    half_written = path.with_suffix(".part")
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        half_written,
        metadata={"calibration": json.dumps(ruler.calibration.plain())},
    )
    half_written.replace(path)


def load_ruler(path: Path, config: SyntheticConfig, spec: BackboneSpec, pixels: int) -> Ruler | None:
    """The ruler kept at `path`; None if there is no such file."""
    if not path.is_file():
        return None
    nouns = nouns_of(config)
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        calibration = Calibration(**json.loads(file.metadata()["calibration"]))
    probe = ShapeProbe(len(nouns), spec.geometry.views, pixels)
    probe.load_state_dict({n.removeprefix("probe."): t for n, t in tensors.items() if n.startswith("probe.")})
    colours = ColourRule(config.colours, nouns, tensors["colours.usual"], tensors["colours.spread"])
    return Ruler(probe.eval(), colours, {noun: tensors[f"outlines.{noun}"] for noun in nouns}, calibration)
