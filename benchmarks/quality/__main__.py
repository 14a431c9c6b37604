"""What a bundle generates, by numbers and images.

    python -m benchmarks.quality BUNDLE [--quick] [--sweep] [--seeds N] [--json PATH] [--sheet PNG]
                                        [--prompts-sheet PNG] [--turntables DIR] [--only-images]
                                        [--repository DIR]

The requests follow the grammar that the bundle was trained on, which its lineage names. Generated objects are judged by
their four generated views:

    colour      the named colour covers most of the object, not counting what all objects of that noun show
    shape       a probe trained on true renders of other objects recognises the noun
    held-out    colour and shape are right for pairs of noun and colour that training never showed
    relations   the two objects of a scene are arranged as the prompt says, judged by their colours
    counts      as many outlines stand apart as the prompt says, in its colour
    sizes       small and large shapes cover as much of the image as true ones
    silhouette  overlap of outlines with those of true objects of that noun
    fuzz        hair and pits: share of the outline that opening and closing change, at 256 px
    fringe      width of the half-transparent edge, at 256 px
    recon       PSNR of novel views of unseen objects, reconstructed by GSRecon, and the loss through GSVAE

The table also shows how often each judge is right about true renders. The exit code is 1 if a figure misses its bar.
"""

import argparse
import json
import sys
from pathlib import Path

from PIL import Image

from benchmarks.machine import describe_machine
from benchmarks.quality.bars import missed_bars, table
from benchmarks.quality.judge import confusions
from benchmarks.quality.measure import QUICK_PLAN, Measured, Plan, measure
from benchmarks.quality.ruler_cache import CACHE
from benchmarks.quality.sheets import README_PROMPTS, comparison_sheet, prompts_sheet, write_turntables
from benchmarks.quality.truth import bundle_config
from diffsplat.bundle import Bundle, open_bundle
from diffsplat.export_record import ExportRecord
from diffsplat.integrity import BundleError
from diffsplat.pipeline import Pipeline

_SWEEP_PROMPTS = 24
MAX_SEEDS = 100
_LISTED = 12  # nouns whose mistakes are printed


def main() -> int:
    """Read the command line and run."""
    args = parser().parse_args()
    if not 1 <= args.seeds <= MAX_SEEDS:
        parser().error(f"--seeds {args.seeds}: must be in 1 .. {MAX_SEEDS}")
    plan = (QUICK_PLAN if args.quick else Plan())._replace(seeds=args.seeds)
    return run(args, plan._replace(sweep_prompts=_SWEEP_PROMPTS if args.sweep else 0))


def run(args: argparse.Namespace, plan: Plan, cache: Path = CACHE) -> int:
    """Measure, print, write the files asked for; returns 1 if a bar is missed."""
    bundle = open_bundle(args.bundle)
    for path in (args.json, args.sheet, args.prompts_sheet):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    pipeline = None if args.repository is None else _served_pipeline(bundle, args.repository)
    _write_images(bundle, args.prompts_sheet, args.turntables)
    if args.only_images:
        return 0
    measured = measure(bundle, plan, cache, pipeline)
    if args.json:
        args.json.write_text(json.dumps({"machine": describe_machine(), **measured.figures}, indent=2) + "\n")
    if args.sheet:
        sheet = comparison_sheet(measured.verdicts, measured.views, measured.config, bundle.spec)
        Image.fromarray(sheet).save(args.sheet)
    print(_report(measured))
    return int(bool(measured.figures["missed"]))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--quick", action="store_true", help="about 60 objects: for a look while training")
    parser.add_argument("--sweep", action="store_true", help="also other guidance scales and numbers of steps")
    parser.add_argument(
        "--seeds", type=int, default=1, help="seeds of every request; shares are their means (default: 1)"
    )
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="generated above true objects, for every prompt")
    parser.add_argument("--prompts-sheet", type=Path, metavar="PNG", help="a few prompts, four views of 256 px each")
    parser.add_argument("--turntables", type=Path, metavar="DIR", help="a PNG of 512 px views all around, per prompt")
    parser.add_argument("--repository", type=Path, metavar="DIR", help="an export whose graphs generate the objects")
    parser.add_argument("--only-images", action="store_true", help="--prompts-sheet and --turntables, no figures")
    return parser


def _served_pipeline(bundle: Bundle, repository: Path) -> Pipeline:
    """The graphs of an export. Raises BundleError if it is of another bundle."""
    exported = ExportRecord.read(repository / "denoise" / "1")
    if exported.digest != bundle.digest:
        raise BundleError(f"{repository}: exported from {exported.bundle} {exported.digest}, not from {bundle.root}")
    used = ", ".join(f"{name} {graph.backend} {graph.precision}" for name, graph in exported.graphs.items())
    print(f"objects are generated by the graphs of {repository}: {used}")
    return Pipeline.load(repository)


def _write_images(bundle: Bundle, prompts_path: Path | None, turntables: Path | None) -> None:
    if prompts_path is None and turntables is None:
        return
    pipeline, prompts = Pipeline.from_bundle(bundle), README_PROMPTS[bundle_config(bundle).grammar]
    if prompts_path is not None:
        Image.fromarray(prompts_sheet(pipeline, prompts)).save(prompts_path)
    if turntables is not None:
        write_turntables(turntables, pipeline, prompts)


def _report(measured: Measured) -> str:
    figures, calibration = measured.figures, measured.ruler.calibration
    counts = ", ".join(f"{count} {group}" for group, count in figures["requests"].items())
    lines = [f"{figures['bundle']}, {figures['grammar']} grammar; objects: {counts}"]
    lines.append(table(figures, figures["grammar"], calibration))
    if spread := figures["seed_spread"]:
        lines.append(
            f"over {spread['seeds']} seeds of {spread['prompts']} prompts: share of right objects +- "
            f"{spread['accuracy_std']:.1%}, images of one prompt differ by {spread['image_difference']:.3f}, "
            f"those of true objects by {spread['true_image_difference']:.3f}"
        )
    for option, values in (figures["sweeps"] or {}).items():
        for value, shares in values.items():
            parts = ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share is not None)
            lines.append(f"{option} {value}: {parts}")
    wrong = sorted(confusions(measured.verdicts).items(), key=lambda item: -item[1].total())
    for noun, seen in wrong[:_LISTED]:
        lines.append(f"  {noun}: seen as " + ", ".join(f"{name} ({count})" for name, count in seen.most_common(4)))
    if len(wrong) > _LISTED:
        lines.append(f"  and {len(wrong) - _LISTED} more nouns, see by_noun in the JSON file")
    if calibration.shape_confusions:
        pairs = [f"{pair} ({count})" for pair, count in list(calibration.shape_confusions.items())[:8]]
        lines.append("the probe's mistakes on true renders: " + ", ".join(pairs))
    missed = missed_bars(figures, figures["grammar"])
    lines.append("every bar is met" if not missed else "MISSED: " + "; ".join(map(str, missed)))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
