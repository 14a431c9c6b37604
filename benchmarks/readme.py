"""`python -m benchmarks readme [--write]`: the figures of the README, from `benchmarks/results` and the shipped bundle.

The README holds blocks between `<!-- figures: NAME -->` and `<!-- end -->`. Without `--write` a block that differs from
the results is printed as a diff, and the exit code is 1; with it the README is rewritten.
"""

import argparse
import difflib
import json
import re
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.quality.truth import trained_config

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MACHINE = "x86-64-avx512-2-cores"  # whose figures the README shows, but for those of the fresh clone
FRESH_CLONE_MACHINE = "x86-64-avx2-2-cores"
_NANO = ROOT / "bundles" / "nano"
_BLOCK = re.compile(r"(?<=<!-- figures: )(?P<name>[\w ]+)(?P<open> -->\n)(?P<body>.*?)(?=<!-- end -->)", re.DOTALL)
_RECOGNISED = 0.5  # share of right shapes from which a noun counts as known

Read = Callable[[str], dict[str, Any]]  # file below `results` -> its figures


class FiguresError(ValueError):
    """A README whose blocks are not the expected ones, or a result without a figure that is shown."""


class NotMeasuredError(FiguresError):
    """There is no result of a benchmark; its block in the README says so."""


def read_results(name: str) -> dict[str, Any]:
    """Figures of one benchmark, of the README's machine or of every machine; NotMeasuredError without such a file."""
    machine = FRESH_CLONE_MACHINE if name == "fresh_clone" else MACHINE
    for path in (RESULTS / machine / f"{name}.json", RESULTS / f"{name}.json"):
        if path.is_file():
            return dict(json.loads(path.read_text()))
    raise NotMeasuredError(f"Not measured yet: `python -m benchmarks {name}` measures these figures.")


def rewrite(text: str, read: Read = read_results) -> str:
    """The README's text with every block written anew.

    Raises:
        FiguresError: a block is missing or unknown, or a result lacks a figure.
    """
    found = [match["name"] for match in _BLOCK.finditer(text)]
    if sorted(found) != sorted(BLOCKS):
        raise FiguresError(f"README.md: has the blocks {sorted(found)}, must have {sorted(BLOCKS)}, each once")

    def written(match: re.Match[str]) -> str:
        try:
            body = BLOCKS[match["name"]](read)
        except NotMeasuredError as error:
            body = str(error)
        except KeyError as error:
            raise FiguresError(f"block {match['name']!r}: the results lack the figure {error}; measure again") from None
        return f"{match['name']}{match['open']}{body}\n"

    return _BLOCK.sub(written, text)


def _nano(read: Read) -> str:
    bundle = json.loads((_NANO / "bundle.json").read_text())
    quality = read("quality_nano")
    size = sum(path.stat().st_size for path in _NANO.iterdir())
    hours = bundle["lineage"]["seconds"] / 3600
    missed = unrecognised(quality)
    nouns = len(quality["by_noun"])
    but = f" (not: {', '.join(missed)})" if missed else ""
    splats = quality["visible_splats"]
    grid = bundle["spec"]["geometry"]["grid_size"]
    text = (
        f"nano, the network that comes with the repository, was trained by this code: {_parameters() / 1e6:.0f} M "
        f"parameters, {size / 1e6:.0f} MB, grids of {grid} px. The last run of each of its stages took {hours:.1f} "
        f"hours of one CPU core together; training/presets/nano.py lists all runs. It was trained on {nouns} everyday "
        f"objects and shapes in {_colours(bundle)} colours and "
        f"gets {nouns - len(missed)} of them right{but}. Of {splats['objects']} objects the median has "
        f"{splats['median']:,.0f} visible splats, the largest {splats['most']:,}."
    )
    return textwrap.fill(text, 120)


def _colours(bundle: Mapping[str, Any]) -> int:
    """How many colours the captions of a bundle's training named."""
    return len(trained_config(bundle["lineage"]["stages"]).colours)


def unrecognised(quality: Mapping[str, Any]) -> list[str]:
    """Nouns that the shape probe sees in fewer than half of their objects."""
    return [noun for noun, shares in quality["by_noun"].items() if shares["shape"] < _RECOGNISED]


def _parameters() -> int:
    """Numbers in the bundle's weights."""
    total = 0
    for path in _NANO.glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, tensor in header.items():
            count = 1
            for axis in tensor["shape"] if name != "__metadata__" else [0]:
                count *= axis
            total += count
    return total


def _machine(read: Read) -> str:
    machine = read("rasterizer")
    return f"Measured on {machine['cores']} cores of an {machine['cpu']} without a GPU (`{machine['machine']}`)."


def _quality(read: Read) -> str:
    nano = read("quality_nano")
    true, counts, areas = nano["on_true_renders"], nano["requests"], nano["covered_area"]
    singles = counts["shape"] + counts["object"]
    return _table(
        ("nano, on words, objects and seeds kept for the test", "figure", "judges on true renders"),
        [
            ("right colour", _percent(nano["colour_accuracy"]), _percent(true["colour"])),
            (f"right noun, {singles} prompts", _percent(nano["shape_accuracy"]), _percent(true["shape"])),
            (
                f"both right, {counts['held-out']} prompts with pairs of noun and colour never shown in training",
                _percent(nano["heldout_accuracy"]),
                "",
            ),
            (
                f"two-shape scenes, {counts['relation']} prompts: the right colours in the right places",
                _percent(nano["relations_accuracy"]),
                _percent(true["relation"]),
            ),
            (
                f"stripes and two-tone, {counts['pattern']} prompts: both colours and the shape",
                _percent(nano["pattern_accuracy"]),
                _percent(true["pattern"]),
            ),
            (
                f"two or three of a thing, {counts['count']} prompts: as many, in its colour",
                _percent(nano["count_accuracy"]),
                _percent(true["counts"]),
            ),
            (
                f'"small" and "large", {counts["size"]} prompts: the right one of the two sizes',
                _percent(nano["size_accuracy"]),
                _percent(areas["true_accuracy"]),
            ),
            (
                "share of the image that small shapes cover; large ones",
                f"{areas['small']:.2f}; {areas['large']:.2f}",
                f"{areas['true_small']:.2f}; {areas['true_large']:.2f}",
            ),
            ("silhouette IoU", f"{nano['silhouette_iou']:.2f}", f"{true['silhouette_iou']:.2f}"),
            (
                "novel views of unseen objects, by GSRecon; through the autoencoder",
                f"{nano['recon_psnr_db']:.1f} dB; {nano['vae_psnr_db']:.1f} dB",
                "",
            ),
            ("prompt to PLY and four views, default steps, median", f"{nano['seconds_per_asset']:.1f} s", ""),
        ],
    )


def _performance(read: Read) -> str:
    pico, overhead, rows = read("quality_pico"), read("ensemble_overhead"), read("rasterizer")["rows"]
    formats, memory = read("formats"), read("import_memory")["import_memory"]
    flops = read("flops")["backbones"]
    forward = rows[0]
    frames = next(row for row in rows if "uint8 frames" in row["name"] and row["threads"] == 2)
    ratios = ", ".join(f"{flops[name]['denoiser']['ratio']:.3f}" for name in ("sd15", "pixart_sigma", "sd35"))
    return _table(
        ("what", "figure", "command, `python -m benchmarks.…`"),
        [
            (
                "pico (test network, 4 shapes in 6 colours): right colour, right shape",
                f"{_percent(pico['colour_accuracy'])}, {_percent(pico['shape_accuracy'])}",
                "`quality bundles/pico`",
            ),
            (
                "pico, prompt to PLY and four views, median",
                f"{overhead['median_s']['ensemble']:.2f} s",
                "`ensemble_overhead bundles/pico`",
            ),
            (
                f"ensemble over the same stages in one process, median of {len(overhead['seconds']['ensemble'])} pairs",
                f"{overhead['ratio']:.2f} x",
                "same",
            ),
            (
                "CPU rasterizer, 262,144 splats at 256 px, one thread; over a tiled torch one",
                f"{forward['kernels_ms']:.1f} ms; {forward['ratio']:.1f} x",
                "`rasterizer`",
            ),
            ("24 frames of 256 px, two threads", f"{frames['kernels_ms']:.1f} ms a frame", "same"),
            (f"writing {formats['splats']:,} splats as PLY", f"{formats['ply_write_s']:.3f} s", "`formats`"),
            (
                f"import of a full-size SD1.5 checkpoint, {memory['precision']}: peak memory over its size on disk",
                f"{memory['ratio']:.2f}",
                "`import_memory`",
            ),
            (
                "FLOPs of all denoising steps over the published code's: SD1.5, PixArt-Sigma, SD3.5",
                ratios,
                "`flops`",
            ),
        ],
    )


def _fresh_clone(read: Read) -> str:
    taken = read("fresh_clone")
    return _table(
        (f"`make demo` on a fresh clone (`{taken['machine']}`)", "figure"),
        [
            (
                "disk: the clone; `.venv` with all that the demo needs",
                f"{taken['clone_bytes'] / 1e9:.1f} GB; {taken['venv_bytes'] / 1e9:.1f} GB",
            ),
            ("memory of the running server, all its processes", f"{taken['server_bytes'] / 1e9:.1f} GB"),
            (
                "time: install; export, server start, object with film and viewer",
                f"{taken['install_s']:.0f} s; {taken['demo_s']:.0f} s",
            ),
        ],
    )


BLOCKS: dict[str, Callable[[Read], str]] = {
    "nano": _nano,
    "machine": _machine,
    "quality": _quality,
    "performance": _performance,
    "fresh clone": _fresh_clone,
}


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ("---",) * len(head), *rows))


def _percent(share: float) -> str:
    return f"{share:.1%}".replace("100.0%", "100%").replace("%", " %")


def main(arguments: list[str] | None = None, path: Path = ROOT / "README.md") -> int:
    """Check or rewrite; 1 if the README differs from the results, or a block or figure is missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks readme", description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="rewrite the README's blocks")
    write = parser.parse_args(arguments).write
    text = path.read_text(encoding="utf-8")
    try:
        expected = rewrite(text)
    except FiguresError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if write:
        path.write_text(expected, encoding="utf-8")
        return 0
    old, new = text.splitlines(keepends=True), expected.splitlines(keepends=True)
    sys.stdout.writelines(difflib.unified_diff(old, new, "README.md", "benchmarks/results"))
    return int(text != expected)
