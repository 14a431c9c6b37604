"""`diffsplat models FOLDER...`: list the bundles and served repositories below some folders, with their licences."""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffsplat.backbones import BackboneSpec
from diffsplat.bundle import MANIFEST, Bundle, read_manifest
from diffsplat.export_record import RECORD, ExportRecord
from diffsplat.integrity import BundleError

# From the base models' own pages. The terms may change, and DiffSplat's weights have terms of their own.
_LICENCES = {
    "sd15": "CreativeML OpenRAIL-M",
    "sd21": "CreativeML Open RAIL++-M",
    "sdxl": "CreativeML Open RAIL++-M",
    "pixart_alpha": "OpenRAIL++",
    "pixart_sigma": "OpenRAIL++",
    "sd35": "Stability AI Community License",
}
_OTHER_LICENCE = "see the base model"
_OWN = ("pico", "nano")  # trained here from scratch
_MAX_DEPTH = 3
_PRECISIONS = {"F32": "fp32", "F16": "fp16", "BF16": "bf16", "F64": "fp64"}


@dataclass(frozen=True)
class ModelEntry:
    """One line of the list."""

    path: Path
    kind: str  # bundle, or served on cpu or cuda
    backbone: str
    conditions: tuple[str, ...]
    precision: str  # of the weights, or what the graphs compute in
    nbytes: int
    licence: str


def licence_note(backbone: str) -> str:
    """Licence of a backbone's base model, if known."""
    name = backbone.removesuffix("_image")
    if name in _OWN:
        return "-"
    return _LICENCES.get(name, _OTHER_LICENCE)


def conditions(spec: BackboneSpec) -> tuple[str, ...]:
    """Inputs that can condition a generation."""
    return ("text", *(["image"] * spec.is_image_conditioned), *spec.controls)


def describe_bundle(bundle: Bundle) -> ModelEntry:
    """Describe a bundle from its manifest and the headers of its files."""
    return ModelEntry(
        bundle.root,
        "bundle",
        bundle.spec.name,
        conditions(bundle.spec),
        ", ".join(_precisions(bundle)) or "-",
        sum(file["bytes"] for file in bundle.files.values()),
        licence_note(bundle.spec.name),
    )


def _precisions(bundle: Bundle) -> Iterable[str]:
    """Precisions of the weights, by decreasing number of bytes."""
    held: dict[str, int] = {}
    for name in bundle.files:
        path = bundle.root / name
        if not name.endswith(".safetensors") or not path.is_file():
            continue
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for key, entry in header.items():
            if key != "__metadata__" and entry["dtype"] in _PRECISIONS:
                begin, end = entry["data_offsets"]
                precision = _PRECISIONS[entry["dtype"]]
                held[precision] = held.get(precision, 0) + end - begin
    return sorted(held, key=lambda precision: -held[precision])


def _describe_repository(root: Path) -> ModelEntry:
    records = [ExportRecord.read(path.parent) for path in sorted(root.glob(f"*/*/{RECORD}"))]
    nbytes = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    spec, device = records[0].spec, records[0].device
    precisions = sorted({graph.precision for record in records for graph in record.graphs.values()})
    served = f"served on {device}"
    licence = licence_note(spec.name)
    return ModelEntry(root, served, spec.name, conditions(spec), ", ".join(precisions), nbytes, licence)


def list_models(folders: Sequence[str | Path]) -> tuple[list[ModelEntry], list[str]]:
    """Find bundles and exported repositories in folders, up to three levels deep.

    Returns:
        Their descriptions, and messages on those that cannot be read.

    Raises:
        NotADirectoryError: a folder does not exist.
    """
    entries, problems = [], []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise NotADirectoryError(f"{folder}: no such folder")
        for root in _candidates(folder, _MAX_DEPTH):
            try:
                bundle = (root / MANIFEST).is_file()
                entries.append(describe_bundle(read_manifest(root)) if bundle else _describe_repository(root))
            except (BundleError, OSError, ValueError, KeyError, TypeError) as error:
                problems.append(f"{root}: {error}")
    return entries, problems


def _candidates(folder: Path, depth: int) -> list[Path]:
    """Folders that look like a bundle or an exported repository."""
    if (folder / MANIFEST).is_file() or ((folder / RECORD).is_file() and any(folder.glob(f"*/*/{RECORD}"))):
        return [folder]
    if depth == 0:
        return []
    below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return [found for path in below for found in _candidates(path, depth - 1)]


def table_of(entries: Sequence[ModelEntry]) -> Any:
    """A rich table."""
    from rich.table import Column, Table

    table = Table(
        Column("folder", overflow="fold"), "kind", "backbone", "conditions", "precision", "GB", "base model's licence"
    )
    for entry in entries:
        table.add_row(
            str(entry.path),
            entry.kind,
            entry.backbone,
            ", ".join(entry.conditions),
            entry.precision,
            f"{entry.nbytes / 1e9:.2f}",
            entry.licence,
        )
    return table


def models_command(subparsers: Any) -> None:
    """Add the command to the client's command line (entry point `diffsplat_client.commands`)."""
    parser: argparse.ArgumentParser = subparsers.add_parser("models", help="list bundles and served repositories")
    parser.description = "List the bundles and the exported repositories in some folders."
    add_arguments(parser)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command and the function that runs it."""
    parser.add_argument("folders", nargs="*", default=["."], metavar="FOLDER", help="default: this folder")
    parser.set_defaults(run=_models)


def _models(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    try:
        entries, problems = list_models(arguments.folders)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if entries:
        Console().print(table_of(entries))
    else:
        print(f"no bundles or exported repositories in {', '.join(map(str, arguments.folders))}")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0
