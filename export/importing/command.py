"""`python -m export import --backbone sd15 [--image] [--control depth ...] SOURCE OUT`."""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any, get_args

from diffsplat_client.commands.interrupts import leave_on_sigterm
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from diffsplat.backbones import BACKBONES, BackboneSpec
from diffsplat.backbones.spec import ControlType
from diffsplat.backbones.text import TEXTS
from diffsplat.catalogue import describe_bundle, table_of
from diffsplat.integrity import BundleError
from export.common import ExportError
from export.importing.importer import ImportOptions, import_bundle
from export.importing.layout import NEWEST, PUBLISHED, REPOSITORY, SourceError, default_tags
from export.importing.network import PRECISIONS

_CONTROLS: tuple[str, ...] = get_args(ControlType)
_NETWORKS = ("denoiser", "gsvae", "gsrecon", "elevest", *(f"controlnet_{kind}" for kind in _CONTROLS))
_NO_T5 = "_no_t5"  # suffix of a text recipe's name


def import_command(arguments: list[str]) -> int:
    """Parse, import, print; returns the exit code."""
    parser = _parser()
    options = parser.parse_args(_spread(arguments))
    console = Console()
    try:
        with leave_on_sigterm():
            bundle = _import_with_progress(_options(options), console)
    except (SourceError, BundleError, ExportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: repeat the command to continue with the first unfinished network", file=sys.stderr)
        return 130
    console.print(table_of([describe_bundle(bundle)]))
    console.print(
        f"{bundle.root}: written; `python -m export {bundle.root} --out DIR` makes it servable", soft_wrap=True
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export import", description="Official checkpoints -> a bundle.")
    parser.add_argument(
        "source", metavar="SOURCE", help=f"folder in the hub's layout or cache, or a repository such as {REPOSITORY}"
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder of the bundle to write")
    parser.add_argument("--backbone", choices=PUBLISHED, required=True)
    parser.add_argument("--image", action="store_true", help="the image-conditioned model")
    parser.add_argument(
        "--control", action="append", choices=_CONTROLS, default=[], help="ControlNets to import with it, one or more"
    )
    parser.add_argument("--elevest", action="store_true", help="import the elevation estimator too")
    parser.add_argument(
        "--image-encoder",
        action="store_true",
        help="import the base image VAE's encoder, which Instant3D's start needs; image models always have it",
    )
    parser.add_argument("--no-t5", action="store_true", help="SD3 and SD3.5: leave T5 out")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="precision of text encoders, denoiser and ControlNets (default fp32; weights published in half precision "
        "stay so); GSVAE, GSRecon, image encoder and elevation estimator are never reduced",
    )
    parser.add_argument("--base", help="folder or repository of the base model (default: the backbone's on the hub)")
    parser.add_argument(
        "--tag",
        action="append",
        type=_pair,
        default=[],
        metavar="NETWORK=TAG",
        help="folder name of a network's checkpoint; repeatable",
    )
    parser.add_argument(
        "--iteration",
        action="append",
        type=_iteration,
        default=[],
        metavar="NETWORK=N",
        help=f"iteration of a network; repeatable; default {NEWEST}, the newest",
    )
    return parser


def _spread(arguments: list[str]) -> list[str]:
    """Repeat `--control` before every type of `--control depth normal SOURCE`; argparse would take SOURCE as a type."""
    spread: list[str] = []
    for argument in arguments:
        if argument in _CONTROLS and len(spread) > 1 and spread[-2] == "--control" and spread[-1] in _CONTROLS:
            spread.append("--control")
        spread.append(argument)
    return spread


def _pair(text: str) -> tuple[str, str]:
    network, equals, value = text.partition("=")
    if not (network and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r}: must be NETWORK=VALUE, such as denoiser=my_run")
    if network not in _NETWORKS:
        raise argparse.ArgumentTypeError(f"{network!r}: must be one of {', '.join(_NETWORKS)}")
    return network, value


def _iteration(text: str) -> tuple[str, int]:
    network, value = _pair(text)
    try:
        return network, int(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: must be NETWORK=NUMBER, such as denoiser=13020") from None


def _options(options: argparse.Namespace) -> ImportOptions:
    name = f"{options.backbone}{'_image' * options.image}"
    tags = default_tags(name) | dict(options.tag)
    return ImportOptions(
        spec=_spec(name, options),
        source=options.source,
        base=options.base or PUBLISHED[options.backbone][0],
        out=options.out,
        precision=options.precision,
        tags=tags,
        iterations=dict(options.iteration),
    )


def _spec(name: str, options: argparse.Namespace) -> BackboneSpec:
    changes: dict[str, Any] = {}
    if options.control:
        changes["controls"] = tuple(dict.fromkeys(options.control))
    if options.elevest:
        changes["elevest"] = {}
    if options.image_encoder:
        changes["image_encoder"] = True
    if options.no_t5:
        if f"{options.backbone}{_NO_T5}" not in TEXTS:
            possible = ", ".join(name.removesuffix(_NO_T5) for name in TEXTS if name.endswith(_NO_T5))
            raise SourceError(f"--no-t5: must be given for one of {possible}, not for {options.backbone}")
        changes["text"] = TEXTS[f"{options.backbone}{_NO_T5}"]
    try:
        return dataclasses.replace(BACKBONES[name], **changes)
    except ValueError as error:
        raise SourceError(f"{name}: {error}") from None


def _import_with_progress(options: ImportOptions, console: Console) -> Any:
    columns = (TextColumn("{task.description:28}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("left"), console=console, transient=True) as display:
        task = display.add_task("starting", total=None)

        def show(text: str, done: int, total: int) -> None:
            display.update(task, description=text, completed=done, total=total or None)

        return import_bundle(options, show)
