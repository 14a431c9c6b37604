"""`python -m training data ...`: everything about data sets; each command has a module of its own."""

import importlib
import sys

from training.signals import sigterm_as_interrupt

COMMANDS = {  # name -> module with `main(arguments) -> int`, what it does
    "convert": ("training.data.convert_command", "stored objects -> shards at training resolution"),
    "check": ("training.data.check_command", "what is broken in a data set, and whether its cameras and depths fit"),
    "render": ("training.data.meshes.command", "own 3D models (.glb .gltf .obj .ply .stl) -> a data set"),
    "furniture": (
        "training.data.meshes.furniture_command",
        "the models of Debian's sweethome3d-furniture -> a data set",
    ),
}

_EXTRA = ("trimesh", "embreex")  # packages of the extra `training`
_INTERRUPTED = 130  # as a shell reports a process ended by Ctrl-C


def main(arguments: list[str]) -> int:
    """Run the command that the first argument names; the exit code is 0, 1 after an error, 130 after a stop signal."""
    if not arguments or arguments[0] not in COMMANDS:
        out = sys.stdout if arguments and arguments[0] in ("-h", "--help") else sys.stderr
        if arguments and out is sys.stderr:
            print(f"error: data {arguments[0]}: no such command", file=out)
        print("usage: python -m training data COMMAND ...; --help after a command lists its options\n", file=out)
        for name, (_, description) in COMMANDS.items():
            print(f"    {name:<10} {description}", file=out)
        return 0 if out is sys.stdout else 2
    module, _ = COMMANDS[arguments[0]]
    try:
        with sigterm_as_interrupt():
            result: int = importlib.import_module(module).main(arguments[1:])
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return _INTERRUPTED
    except ModuleNotFoundError as error:
        if error.name not in _EXTRA:
            raise
        print(f"error: data {arguments[0]} needs {error.name}: pip install -e .[training]", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return result
