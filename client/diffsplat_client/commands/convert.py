"""`diffsplat convert IN OUT`: splats of one file in another format, without a server."""

import argparse
from pathlib import Path
from typing import Any

from diffsplat_client.errors import InvalidRequestError
from diffsplat_client.formats import FORMATS
from diffsplat_client.formats.any_file import format_for, read_splats, write_splats
from diffsplat_client.formats.axes import FRAMES, OPENGL


def add_command(commands: Any) -> None:
    """Add the parser of `convert`."""
    endings = ", ".join(dict.fromkeys(format.extension for format in FORMATS.values()))
    parser = commands.add_parser("convert", help=f"convert a file of splats to another format: {endings}")
    parser.add_argument("source", type=Path, metavar="IN", help="file to read, of any format")
    parser.add_argument("target", type=Path, metavar="OUT", help=f"file to write; it ends with one of {endings}")
    parser.add_argument("--format", choices=list(FORMATS), default="", help="format of OUT, whatever its name")
    parser.add_argument(
        "--frame", choices=[OPENGL], default="", help="axes of OUT: y up; without it those that its readers assume"
    )
    parser.add_argument(
        "--input-frame",
        choices=FRAMES,
        default="",
        help="axes of IN; without it those that the file names, or else those of its format",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert, and say what was written."""
    try:
        format = format_for(args.target, args.format)
        cloud = read_splats(args.source, args.input_frame)
        write_splats(args.target, cloud, args.frame, format.name)
    except ValueError as error:
        raise InvalidRequestError(str(error)) from None
    size = args.target.stat().st_size
    print(f"{args.target}: {len(cloud)} splats, {format.name}, axes {args.frame or format.frame}, {size:,} bytes")
    return 0
