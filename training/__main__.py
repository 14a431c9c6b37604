"""Command line: ``python -m training PRESET [options]``; ``--help`` lists the presets, in groups.

``python -m training data COMMAND`` makes and checks data sets.
"""

import difflib
import sys
from collections.abc import Sequence
from typing import Any

import tyro

from training.presets import GROUPS

_WRONG_USAGE = 2
_USAGE = "usage: python -m training PRESET [options]; python -m training PRESET --help lists a preset's options"


def main(arguments: list[str] | None = None) -> int:
    """Run one preset; the exit code is 0, 1 after an error, 130 after a stop signal."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["data"]:
        from training.data import command as data_command

        return data_command.main(arguments[1:])
    config = read_command(arguments)
    from training.run import run_command  # imports every network, which takes seconds: not for --help or a misspelling

    return run_command(config)


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


if __name__ == "__main__":
    sys.exit(main())
