"""Bundles: self-describing folders of trained networks.

    bundles/pico/
      bundle.json                 spec, files with sha256 and size, lineage, and the sha256 of all these
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffsplat.backbones import BackboneSpec
from diffsplat.integrity import BundleError, check_seal, describe_file, read_json, verify_file, write_sealed
from diffsplat.weights import MAX_SHARD_BYTES, write_weights

FORMAT = "diffsplat-bundle"
FORMAT_VERSION = 2  # 2: the manifest carries the hash of its own content
MANIFEST = "bundle.json"
TOKENIZER = "tokenizer"  # .json; a second one is tokenizer_2.json


@dataclass(frozen=True)
class Bundle:
    """An opened bundle, all files verified."""

    root: Path
    spec: BackboneSpec
    files: dict[str, dict[str, Any]]  # relative path -> {"sha256", "bytes"}
    lineage: dict[str, Any]

    @property
    def digest(self) -> str:
        """Hash of the spec and of all files; lineage does not change it."""
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
    """Read and verify a bundle. Raises BundleError naming the file that is missing, truncated or edited."""
    bundle = read_manifest(root)
    for name, expected in bundle.files.items():
        verify_file(bundle.root, MANIFEST, name, expected)
    return bundle


def read_manifest(root: str | os.PathLike[str]) -> Bundle:
    """Read a bundle's manifest without verifying the files that it lists. Raises BundleError."""
    path = Path(root) / MANIFEST
    manifest = _read_manifest(path)
    found = (manifest.get("format"), manifest.get("version"))
    if found == (FORMAT, 1):
        raise BundleError(
            f"{path}: written by an older version of this code, without a hash of its own; "
            f"`python -m export upgrade {path.parent}` verifies its files and adds one"
        )
    if found != (FORMAT, FORMAT_VERSION):
        raise BundleError(
            f"{path}: format {found[0]!r} version {found[1]!r}, this code reads {FORMAT!r} version {FORMAT_VERSION}"
        )
    check_seal(path, manifest)
    return _parse(path, manifest)


def upgrade_bundle(root: str | os.PathLike[str]) -> bool:
    """Bring a bundle of version 1, whose manifest had no hash of its own, to the present version.

    Returns:
        Whether anything was changed.

    Raises:
        BundleError: a file is missing or damaged, or the bundle has neither version.
    """
    path = Path(root) / MANIFEST
    manifest = _read_manifest(path)
    if (manifest.get("format"), manifest.get("version")) != (FORMAT, 1):
        open_bundle(root)
        return False
    for name, expected in _parse(path, manifest).files.items():
        verify_file(path.parent, MANIFEST, name, expected)
    write_sealed(path, {**manifest, "version": FORMAT_VERSION})
    return True


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise BundleError(f"{path}: missing, so {path.parent} is not a bundle")
    try:
        return read_json(path)
    except ValueError as error:
        raise BundleError(str(error)) from None


def _parse(path: Path, manifest: Mapping[str, Any]) -> Bundle:
    try:
        listed = manifest["files"].items()
        files = {str(name): {"sha256": str(f["sha256"]), "bytes": int(f["bytes"])} for name, f in listed}
        return Bundle(path.parent, BackboneSpec.from_dict(manifest["spec"]), files, manifest["lineage"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{path}: not a valid manifest ({type(error).__name__}: {error})") from None


def write_bundle(
    root: str | os.PathLike[str],
    spec: BackboneSpec,
    networks: Mapping[str, nn.Module],
    tokenizers: Sequence[str],
    lineage: dict[str, Any],
    dtype: torch.dtype = torch.float16,
    max_file_bytes: int = MAX_SHARD_BYTES,
) -> Bundle:
    """Write a bundle beside its final place, then move it there, so that no half-written bundle is ever visible.

    Args:
        root: folder to write. An existing bundle is replaced, any other content is refused.
        spec: what the networks were built from.
        networks: network name -> module.
        tokenizers: one for each text encoder, in order: JSON text of the `tokenizers` library.
        lineage: where the weights come from, plain JSON.
        dtype: type in which floating-point weights are stored.
        max_file_bytes: networks are split into files of at most this size; a larger tensor gets a file of its own.

    Raises:
        BundleError: `root` exists and is not a bundle.
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
    """Turn a folder of files into a bundle and move it to `root`.

    Args:
        staging: holds tokenizers and weights, under their names in a bundle, and nothing else; on the same file system
            as `root`.
        root: as in `write_bundle`, checked by the caller.
        spec: what the networks were built from.
        lineage: where the weights come from, plain JSON.
        known: results of `describe_file` for files that need not be hashed again.
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
    write_sealed(staging / MANIFEST, manifest)
    bundle = read_manifest(staging)  # as others will read it; its files were hashed above
    replace_folder(staging, root)
    return replace(bundle, root=root)


def check_replaceable(target: Path, marker: str) -> None:
    """Raise BundleError unless `target` is absent, empty, or contains the file `marker`."""
    if target.exists() and not (target / marker).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise BundleError(f"{target}: exists and contains no {marker}; refusing to replace it")


def replace_folder(staging: Path, target: Path) -> None:
    """Move a finished folder to `target`; a folder that was there is removed only after the move succeeded."""
    if not target.exists():
        staging.rename(target)
        return
    old = staging.with_name(staging.name + ".old")
    try:
        target.rename(old)
        staging.rename(target)
    except BaseException:  # even Ctrl-C between the two must not lose the old folder
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    shutil.rmtree(old)
