"""Hashes that tell an intact artifact from a damaged or edited one. Imports no torch.

Every file of a bundle or of a served version folder is listed with size and sha256 in a JSON file (`bundle.json`,
`export.json`), and that JSON file carries the sha256 of its own content. This is integrity, not authenticity: it finds
truncated downloads, failing disks and edits by hand, but whoever rewrites a file on purpose can rewrite its hash too.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SEAL = "sha256"  # field of a sealed JSON file: hash of all its other fields


class BundleError(ValueError):
    """A bundle or served repository is missing, truncated, edited or of another format; the message names the file."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; a byte order mark is skipped. Raises ValueError, which names the file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not readable as JSON ({type(error).__name__}: {error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: not readable, holds JSON of type {type(values).__name__} instead of an object")
    return values


def describe_file(path: Path) -> dict[str, Any]:
    """Size and sha256 of a file, as manifests list them."""
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}


def verify_file(root: Path, manifest: str, name: str, expected: Mapping[str, Any]) -> None:
    """Compare a file with its entry in `manifest`. Raises BundleError, which names the file."""
    path = root / name
    if Path(name).name != name:
        raise BundleError(f"{root / manifest}: file name {name!r} must not contain a folder")
    if not path.is_file():
        raise BundleError(f"{path}: missing")
    size = path.stat().st_size
    if size != expected["bytes"]:
        raise BundleError(f"{path}: has {size} bytes, {manifest} says {expected['bytes']}: truncated or replaced")
    if describe_file(path)["sha256"] != expected["sha256"]:
        raise BundleError(f"{path}: content does not match its sha256 in {manifest}: damaged or tampered with")


def write_sealed(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file that carries the hash of its own content."""
    content = {name: value for name, value in values.items() if name != SEAL}
    path.write_text(json.dumps({**content, SEAL: _content_hash(content)}, indent=2) + "\n", encoding="utf-8")


def check_seal(path: Path, values: Mapping[str, Any]) -> None:
    """Compare the parsed content of a sealed JSON file with its hash. Raises BundleError, which names the file."""
    content = {name: value for name, value in values.items() if name != SEAL}
    if values.get(SEAL) != _content_hash(content):
        raise BundleError(f"{path}: content does not match its own {SEAL}: damaged or edited by hand")


def _content_hash(values: Mapping[str, Any]) -> str:
    """Independent of the order of fields and of white space."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
