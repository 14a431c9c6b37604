"""Command line: ``python -m training PRESET [options]``; ``--help`` lists the presets, in groups.

``python -m training data COMMAND`` makes and checks data sets.
"""

import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from diffsplat.bundle import Bundle
from training.assemble import bundle_runs
from training.config.chain import BundleConfig, RecipeConfig, RefineConfig
from training.config.encode_text import EncodeTextConfig
from training.config.evaluate import EvaluateConfig
from training.data import command as data_command
from training.encode_text import run_encode_text
from training.evaluation.command import run_evaluation, summary
from training.launch import close_processes, is_main_process
from training.loop import TrainingError
from training.presets import GROUPS
from training.recipe import Interrupted, run_recipe, run_stage
from training.refine import run_refinement
from training.signals import sigterm_as_interrupt

_INTERRUPTED = 130  # as a shell reports a process ended by Ctrl-C
_WRONG_USAGE = 2
_USAGE = "usage: python -m training PRESET [options]; python -m training PRESET --help lists a preset's options"


def main(arguments: list[str] | None = None) -> int:
    """Run one preset; the exit code is 0, 1 after an error, 130 after a stop signal."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["data"]:
        return data_command.main(arguments[1:])
    config = read_command(arguments)
    try:
        run(config)
    except Interrupted as stop:
        print(f"{stop}; run the same command with --resume", file=sys.stderr)
        return _INTERRUPTED
    except KeyboardInterrupt:  # before the first step, or a second Ctrl-C
        how = "" if isinstance(config, EncodeTextConfig) else " with --resume, from the newest checkpoint"
        print(f"stopped; the same command continues{how}", file=sys.stderr)
        return _INTERRUPTED
    except (ValueError, OSError, TrainingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        close_processes()
    return 0


def read_command(arguments: Sequence[str]) -> Any:
    """The configuration that a command line describes.

    Raises:
        SystemExit: 0 after help, 2 for an unknown preset, option or value.
    """
    presets = {name: preset for group in GROUPS.values() for name, preset in group.items()}
    if not arguments or arguments[0] in ("-h", "--help"):
        print(listing())
        raise SystemExit(0 if arguments else _WRONG_USAGE)
    name, *options = arguments
    if name not in presets:
        near = ", ".join(difflib.get_close_matches(name, presets, n=5)) or "--help lists them"
        print(f"error: no preset {name!r}; did you mean: {near}", file=sys.stderr)
        raise SystemExit(_WRONG_USAGE)
    description, config = presets[name]
    return tyro.cli(
        type(config), prog=f"python -m training {name}", description=description, default=config, args=options
    )


def listing() -> str:
    """All presets with what they are, in groups."""
    width = max(len(name) for group in GROUPS.values() for name in group)
    lines = [_USAGE, "       python -m training data COMMAND; without a command, it lists those that make data sets"]
    for title, group in GROUPS.items():
        lines += ["", f"{title}:"]
        lines += [f"  {name:{width}}  {description}" for name, (description, _) in group.items()]
    return "\n".join(lines)


def run(config: Any) -> None:
    """Do what a configuration describes, and print the bundle if one comes of it."""
    bundle: Bundle | None = None
    if isinstance(config, RecipeConfig):
        bundle = run_recipe(config)
    elif isinstance(config, RefineConfig):
        bundle = run_refinement(config)
    elif isinstance(config, BundleConfig):
        bundle = bundle_runs({path.name: path for path in config.sources}, config.out)
    elif isinstance(config, EncodeTextConfig):
        with sigterm_as_interrupt():
            run_encode_text(config)
    elif isinstance(config, EvaluateConfig):
        print(summary(run_evaluation(config)))
    else:
        run_stage(config)
    if bundle is None or not is_main_process():
        return
    print(f"bundle: {bundle.root}  {sum(file['bytes'] for file in bundle.files.values()) / 1e6:.2f} MB")
    if config.export_to is not None:
        refresh_repository(bundle, config.export_to)


def refresh_repository(bundle: Bundle, repository: Path) -> None:
    """Serve a bundle as the next version of a repository; GateError if it must not be."""
    from export.gates import GateOptions
    from export.refresh import refresh

    done = refresh(bundle.root, repository, GateOptions(), report=print)
    print(f"{repository}: version {done.version} is served")


if __name__ == "__main__":
    sys.exit(main())
