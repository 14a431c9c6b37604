"""The artifact: a folder that describes itself.

    bundles/pico/
      bundle.json                 spec, files with sha256 and size, lineage
      text_encoder.safetensors    tokenizer.json
      denoiser.safetensors  gsvae.safetensors  gsrecon.safetensors

Weights too large for one file are split: see `weights`. `open_bundle` verifies every file before anything is built
from it. Weights may be stored in half precision; they are always used in float32 unless a caller casts them.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffsplat.backbones import BackboneSpec
from diffsplat.weights import MAX_SHARD_BYTES, BundleError, write_weights

FORMAT = "diffsplat-bundle"
FORMAT_VERSION = 1
MANIFEST = "bundle.json"
TOKENIZER = "tokenizer"  # .json; the second one of several is tokenizer_2.json


@dataclass(frozen=True)
class Bundle:
    """An opened bundle, all files verified."""

    root: Path
    spec: BackboneSpec
    files: dict[str, dict[str, Any]]  # relative path -> {"sha256", "bytes"}
    lineage: dict[str, Any]

    @property
    def digest(self) -> str:
        """One hash that changes whenever a weight, the tokenizer or the spec does."""
        content = json.dumps([self.spec.to_dict(), self.files], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def tokenizer_paths(self) -> tuple[Path, ...]:
        """The tokenizers of the text encoders, in the format of the `tokenizers` library."""
        return tuple(self.root / name for name in tokenizer_files(self.spec))


def tokenizer_files(spec: BackboneSpec) -> tuple[str, ...]:
    """File names of a backbone's tokenizers, in the order of its text encoders."""
    return tuple(f"{name}.json" for name in spec.text.numbered(TOKENIZER))


def open_bundle(root: str | os.PathLike[str]) -> Bundle:
    """Read and verify a bundle. Raises BundleError naming the file that is missing, truncated or tampered with."""
    bundle = read_manifest(root)
    for name, expected in bundle.files.items():
        verify_file(bundle.root, MANIFEST, name, expected)
    return bundle


def read_manifest(root: str | os.PathLike[str]) -> Bundle:
    """What a bundle says of itself, its files NOT verified: to be listed, not to be loaded. Raises BundleError."""
    root = Path(root)
    manifest_path = root / MANIFEST
    if not manifest_path.is_file():
        raise BundleError(f"{manifest_path}: missing, so {root} is not a bundle")
    try:
        manifest = json.loads(manifest_path.read_text())
        if (manifest["format"], manifest["version"]) != (FORMAT, FORMAT_VERSION):
            raise BundleError(
                f"{manifest_path}: format {manifest['format']!r} version {manifest['version']!r}, "
                f"this code reads {FORMAT!r} version {FORMAT_VERSION}"
            )
        spec = BackboneSpec.from_dict(manifest["spec"])
        listed = manifest["files"].items()
        files = {str(name): {"sha256": str(f["sha256"]), "bytes": int(f["bytes"])} for name, f in listed}
        lineage = manifest["lineage"]
    except BundleError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{manifest_path}: not a valid manifest ({type(error).__name__}: {error})") from None
    return Bundle(root, spec, files, lineage)


def write_bundle(
    root: str | os.PathLike[str],
    spec: BackboneSpec,
    networks: Mapping[str, nn.Module],
    tokenizers: Sequence[str],
    lineage: dict[str, Any],
    dtype: torch.dtype = torch.float16,
    max_file_bytes: int = MAX_SHARD_BYTES,
) -> Bundle:
    """Write a bundle next to its final place, then move it there, so that a half-written one is never seen.

    Args:
        root: folder to write; replaced when a bundle stands there, refused when something else does.
        spec: what the networks were built from.
        networks: network name -> module.
        tokenizers: of the text encoders, in their order: texts in the format of the `tokenizers` library.
        lineage: where the weights come from, plain JSON.
        dtype: floating-point weights are stored in it.
        max_file_bytes: networks are split into files of at most this size; a single larger tensor goes alone.

    Raises:
        BundleError: `root` is not ours to replace.
        ValueError: `max_file_bytes` is not positive.
    """
    root = Path(root)
    check_replaceable(root, MANIFEST)
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as temporary:
        staging = Path(temporary) / root.name
        staging.mkdir()
        for file, text in zip(tokenizer_files(spec), tokenizers, strict=True):
            (staging / file).write_text(text)
        for name, module in networks.items():
            write_weights(staging, name, module, dtype, max_file_bytes)
        return assemble_bundle(staging, root, spec, lineage)


def assemble_bundle(
    staging: Path,
    root: Path,
    spec: BackboneSpec,
    lineage: dict[str, Any],
    known: Mapping[str, Mapping[str, Any]] | None = None,
) -> Bundle:
    """Make a bundle of the files that lie in a folder, which then takes the place of `root`.

    Args:
        staging: holds tokenizers and weights, under their names in a bundle, and nothing else; on the same file system
            as `root`.
        root: as in `write_bundle`, checked by the caller.
        spec: what the networks were built from.
        lineage: where the weights come from, plain JSON.
        known: what `describe_file` said of some of the files; they are not read again for it.
    """
    known = known or {}
    names = sorted(path.name for path in staging.iterdir() if path.name != MANIFEST)
    manifest = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "spec": spec.to_dict(),
        "files": {name: known.get(name) or describe_file(staging / name) for name in names},
        "lineage": lineage,
    }
    (staging / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    replace_folder(staging, root)
    return open_bundle(root)


def check_replaceable(target: Path, marker: str) -> None:
    """Refuse to replace what this code did not write: `target` must be absent, empty, or hold the file `marker`."""
    if target.exists() and not (target / marker).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise BundleError(f"{target}: exists and holds no {marker}; refusing to replace it")


def replace_folder(staging: Path, target: Path) -> None:
    """Put a finished folder in the place of `target`; what stood there is removed only once the new one is in place."""
    if not target.exists():
        staging.rename(target)
        return
    old = staging.with_name(staging.name + ".old")
    try:
        target.rename(old)
        staging.rename(target)
    except BaseException:  # Ctrl-C between the two must not cost the old folder either
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    shutil.rmtree(old)


def describe_file(path: Path) -> dict[str, Any]:
    """Size and sha256 of a file, as manifests list them."""
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}


def verify_file(root: Path, manifest: str, name: str, expected: Mapping[str, Any]) -> None:
    """Hold a file against what `manifest` says of it; BundleError names the file."""
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
