"""FLOPs and bytes of every stage of every full-size backbone, compared with the published code.

    python -m benchmarks.flops [--backbone NAME ...] [--steps N] [--prompt-tokens N] [--json PATH]

Counts the exported graphs as one guided request runs them, on the meta device in bf16: this needs no weights and no GPU
and the result is the same on every machine. `limit ms` is the least possible time on an H200, operation by operation.
The exit code is 1 if a bar of `reference.BARS` is missed, or if steps read weights that are needed only once per
request.
"""

import argparse
import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.flops.report import figures, missed, text
from benchmarks.flops.stages import Settings, request_work, stages
from diffsplat.backbones import BACKBONES, NANO, PICO

FULL_SIZE = tuple(name for name in BACKBONES if name.removesuffix("_image") not in (PICO.name, NANO.name))
_PACKAGES = ("torch", "diffusers", "transformers")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(prog="python -m benchmarks.flops", description=__doc__.splitlines()[0])
    command.add_argument(
        "--backbone", nargs="+", choices=FULL_SIZE, default=FULL_SIZE, metavar="NAME",
        help=f"some of: {', '.join(FULL_SIZE)} (default: all)",
    )  # fmt: skip
    command.add_argument("--steps", type=_positive, default=Settings().steps, help="of a request (default %(default)s)")
    command.add_argument(
        "--prompt-tokens", type=_positive, default=Settings().prompt_tokens,
        help="of the prompt, where padding is dropped (default %(default)s); the negative prompt is empty",
    )  # fmt: skip
    command.add_argument("--json", type=Path, help="write the figures here")
    return command


def _positive(value: str) -> int:
    number = int(value)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}: must be at least 1")
    return number


def main() -> int:
    """Count, print, write."""
    options = parser().parse_args()
    settings = Settings(options.steps, options.prompt_tokens)
    backbones: dict[str, Any] = {}
    for name in options.backbone:
        spec = BACKBONES[name]
        limit = min(settings.prompt_tokens, spec.text.tokens)  # where the tokenizer cuts
        own = settings._replace(prompt_tokens=limit)
        counted = {stage.name: stage for stage in stages(spec, own)}
        backbones[name] = figures(name, counted, request_work(spec, counted, own), own)
        print(text(name, backbones[name]), end="\n\n", flush=True)
    if options.json:
        versions = {package: importlib.metadata.version(package) for package in _PACKAGES}
        written = {"versions": versions, **settings._asdict(), "backbones": backbones}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(written, indent=2) + "\n")
    return int(any(missed(values) for values in backbones.values()))


if __name__ == "__main__":
    sys.exit(main())
