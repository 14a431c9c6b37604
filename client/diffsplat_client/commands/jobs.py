"""The jobs of one `diffsplat generate`: one object, or one for each prompt and image."""

import argparse
import hashlib
import re
import sys
import unicodedata
from pathlib import Path
from typing import Any, NamedTuple

from diffsplat_client.commands.results import numbered
from diffsplat_client.errors import InvalidRequestError
from diffsplat_client.request_checks import MAX_IMAGE_BYTES, ONE_IMAGE

MAX_SLUG_CHARACTERS = 60
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp")  # of images in a folder, upper or lower case


class Job(NamedTuple):
    """One object to make."""

    folder: str  # name of the folder for its files
    prompt: str
    field: str | None = None  # `image` or `control_image`
    image: Path | None = None  # the file for it

    def images(self) -> dict[str, bytes]:
        """Image fields of the request, read from disk on each call."""
        if self.field is None or self.image is None:
            return {}
        return {self.field: read_image(self.image)}


def add_sources(parser: Any) -> None:
    """Add the arguments for prompts and images."""
    texts = parser.add_mutually_exclusive_group()
    texts.add_argument("prompt", metavar="PROMPT", nargs="?", help="may be left out with an image")
    texts.add_argument("--prompt-file", type=Path, metavar="FILE", help="an object for each line of a UTF-8 text file")
    for field, what in (("image", "image of the object"), ("control-image", "depth, normal or canny map, or photo")):
        images = parser.add_mutually_exclusive_group()
        images.add_argument(f"--{field}", type=Path, metavar="FILE", help=f"{what}: a PNG, JPEG or WebP file")
        images.add_argument(f"--{field}-dir", type=Path, metavar="DIR", help=f"--{field} for each image of a folder")
    parser.add_argument(
        "--name-by-id",
        action="store_true",
        help="name folders by number, 000_002 for the first image and third prompt, instead of by words",
    )


def is_batch(args: argparse.Namespace) -> bool:
    """Whether there may be more than one object."""
    return any((args.prompt_file, args.image_dir, args.control_image_dir))


def jobs_of(args: argparse.Namespace) -> list[Job]:
    """One job for every image and prompt, by image; InvalidRequestError if there are none."""
    field, images = _images(args)
    if args.prompt_file:
        prompts = read_prompts(args.prompt_file)
    elif args.prompt is not None or field:
        prompts = [args.prompt or ""]
    else:
        raise InvalidRequestError("nothing to make: give a PROMPT, --prompt-file, --image or --control-image")
    jobs: list[Job] = []
    taken = {path.name for path in args.out.iterdir()} if args.out.is_dir() and not args.overwrite else set()
    for i, image in enumerate(images):
        for j, prompt in enumerate(prompts):
            words = f"{image.stem} {prompt}" if image else prompt
            name = f"{i:03d}_{j:03d}" if args.name_by_id else slug(words)
            folder = next(free for free in numbered(name) if free not in taken)
            taken.add(folder)
            jobs.append(Job(folder, prompt, field, image))
    return jobs


def _images(args: argparse.Namespace) -> tuple[str | None, list[Path | None]]:
    """The request field for images, and their files; (None, [None]) without images."""
    given = {field: (getattr(args, field), getattr(args, f"{field}_dir")) for field in ("image", "control_image")}
    given = {field: sources for field, sources in given.items() if any(sources)}
    if not given:
        return None, [None]
    if len(given) > 1:
        raise InvalidRequestError(ONE_IMAGE)
    ((field, (file, folder)),) = given.items()
    if file:
        return field, [file]
    images, skipped = list_images(folder)
    for path, reason in skipped.items():
        print(f"warning: {path} is skipped: {reason}", file=sys.stderr)
    return field, [*images]


def list_images(folder: Path) -> tuple[list[Path], dict[Path, str]]:
    """The PNG, JPEG and WebP files of a folder by name, and everything else with the reason to skip it."""
    images, skipped = [], {}
    for path in sorted(folder.iterdir()):
        if reason := _reason_to_skip(path):
            skipped[path] = reason
        else:
            images.append(path)
    if not images:
        others = "; ".join(f"{path.name}: {reason}" for path, reason in [*skipped.items()][:5])
        raise InvalidRequestError(
            f"{folder} holds no image: must have files {', '.join(IMAGE_SUFFIXES)}{f' ({others})' if others else ''}"
        )
    return images, skipped


def _reason_to_skip(path: Path) -> str | None:
    if path.name.startswith("."):  # such as `._photo.png`, which macOS writes beside photo.png on other file systems
        return "a hidden file"
    if not path.is_file():
        return "not a file"
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        return f"not one of {', '.join(IMAGE_SUFFIXES)}"
    if not path.stat().st_size:
        return "an empty file"
    return None


def read_image(path: Path) -> bytes:
    """The bytes of a file; reads little more than a request may carry."""
    with path.open("rb") as file:
        data = file.read(MAX_IMAGE_BYTES + 1)
    if not data or len(data) > MAX_IMAGE_BYTES:
        size = f"more than {MAX_IMAGE_BYTES}" if data else "0"
        raise InvalidRequestError(f"{path} has {size} bytes: must have 1 .. {MAX_IMAGE_BYTES}")
    return data


def read_prompts(path: Path) -> list[str]:
    """The lines of a UTF-8 file that are not blank; InvalidRequestError names the first line that is not text."""
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data[: error.start].count(b"\n") + 1
        raise InvalidRequestError(f"{path} line {number} is not UTF-8 text: must hold one prompt per line") from None
    lines = re.split("\r\n|\r|\n", text)
    for number, line in enumerate(lines, 1):
        if bad := next((letter for letter in line if unicodedata.category(letter) == "Cc" and letter != "\t"), None):
            hint = ", as UTF-16 read as UTF-8 has" if bad == "\0" else ""
            raise InvalidRequestError(
                f"{path} line {number} has the control character U+{ord(bad):04X}{hint}: must be UTF-8 text"
            )
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise InvalidRequestError(f"{path} holds no prompt: must hold one per line")
    return prompts


def slug(words: str) -> str:
    """A folder name: letters and digits of any script, dashes between them."""
    name = re.sub(r"[\W_]+", "-", unicodedata.normalize("NFKC", words).lower()).strip("-")
    if name and len(name) <= MAX_SLUG_CHARACTERS:
        return name
    # keeps words with the same beginning apart
    digest = hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{name[: MAX_SLUG_CHARACTERS - 9].strip('-')}-{digest}".lstrip("-")
