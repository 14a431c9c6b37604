"""The command `diffsplat`: parses arguments, runs a command, and prints every expected failure as one line on stderr.

Exit codes: 0 done, 1 failed, 2 invalid options, 130 interrupted, 143 terminated.
"""

import argparse
import os
import sys
from importlib.metadata import EntryPoint, entry_points
from typing import NoReturn

from diffsplat_client.commands import convert, generate, reconstruct, status
from diffsplat_client.errors import DiffSplatError, InvalidRequestError

COMMANDS = "diffsplat_client.commands"  # entry-point group: functions that take the subparsers and add one


class CommandLineError(Exception):
    """The arguments do not parse."""


class Parser(argparse.ArgumentParser):
    """Reports an error in one line, where argparse prints the whole usage first."""

    def error(self, message: str) -> NoReturn:
        """Raise, where argparse prints and exits."""
        raise CommandLineError(message)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its failures are reported as errors; the log would only add noise
    try:
        args = _parser(argv).parse_args(argv)
        return int(args.run(args) or 0)
    except (CommandLineError, InvalidRequestError) as error:
        return _fail(str(error), 2)
    except ModuleNotFoundError as error:
        return _fail(f"{error.name} is not installed: pip install 'diffsplat-client[grpc,cli,viewer,formats]'", 1)
    except (DiffSplatError, OSError) as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _parser(argv: list[str]) -> Parser:
    parser = Parser(prog="diffsplat", description="Make 3D objects of Gaussian splats with a DiffSplat server.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    generate.add_command(commands)
    reconstruct.add_command(commands)
    status.add_command(commands)
    convert.add_command(commands)
    for entry in sorted(entry_points(group=COMMANDS), key=lambda entry: entry.name):
        _add_foreign_command(commands, entry, loaded=argv[:1] == [entry.name])
    return parser


def _add_foreign_command(commands: "argparse._SubParsersAction[Parser]", entry: EntryPoint, loaded: bool) -> None:
    """Load a command only when it is used: it may import a heavy library."""
    if loaded:
        entry.load()(commands)
    else:
        owner = entry.dist.name if entry.dist else entry.value
        commands.add_parser(entry.name, help=f"provided by {owner}; see diffsplat {entry.name} --help")


def _fail(message: str, code: int) -> int:
    print(f"diffsplat: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
