"""Does what a command line asked for: trains, evaluates, makes a bundle, and serves it."""

import sys
from pathlib import Path
from typing import Any

from diffsplat.bundle import Bundle
from training.assemble import bundle_runs
from training.config.chain import BundleConfig, RecipeConfig, RefineConfig
from training.config.encode_text import EncodeTextConfig
from training.config.evaluate import EvaluateConfig
from training.encode_text import run_encode_text
from training.evaluation.command import run_evaluation, summary
from training.launch import close_processes, is_main_process
from training.loop import TrainingError
from training.recipe import Interrupted, run_recipe, run_stage
from training.refine import run_refinement
from training.signals import sigterm_as_interrupt

_INTERRUPTED = 130  # as a shell reports a process ended by Ctrl-C


def run_command(config: Any) -> int:
    """Do what a configuration describes; the exit code is 0, 1 after an error, 130 after a stop signal."""
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
