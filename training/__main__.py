"""Command line: ``python -m training PRESET [options]``; ``--help`` lists the presets."""

import sys
from typing import Any

import tyro

from training.config.chain import RecipeConfig, RefineConfig
from training.config.encode_text import EncodeTextConfig
from training.encode_text import run_encode_text
from training.loop import TrainingError
from training.presets import RECIPES, REFINEMENTS, STAGES, TEXTS
from training.recipe import Interrupted, run_recipe, run_stage
from training.refine import run_refinement

_INTERRUPTED = 130  # as a shell reports a process ended by Ctrl-C


def main(arguments: list[str] | None = None) -> int:
    """Run one preset; the exit code is 0, 1 after an error, 130 after a stop signal."""
    presets: dict[str, Any] = {**RECIPES, **REFINEMENTS, **STAGES, **TEXTS}
    config = tyro.extras.overridable_config_cli(presets, prog="python -m training", args=arguments)
    try:
        if isinstance(config, RecipeConfig | RefineConfig):
            bundle = run_recipe(config) if isinstance(config, RecipeConfig) else run_refinement(config)
            print(f"bundle: {bundle.root}  {sum(file['bytes'] for file in bundle.files.values()) / 1e6:.2f} MB")
        elif isinstance(config, EncodeTextConfig):
            run_encode_text(config)
        else:
            run_stage(config)
    except Interrupted as stop:
        print(f"{stop}; run the same command with --resume", file=sys.stderr)
        return _INTERRUPTED
    except KeyboardInterrupt:  # before the first step, or a second Ctrl-C
        print("stopped; continue from the newest checkpoint with --resume", file=sys.stderr)
        return _INTERRUPTED
    except (ValueError, TrainingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
