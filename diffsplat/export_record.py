"""`export.json`: what a version folder of the served repository holds, and how each graph was chosen."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diffsplat_client.contract import CONTRACT_VERSION

from diffsplat.backbones import BackboneSpec
from diffsplat.graph import Backend
from diffsplat.integrity import SEAL, BundleError, check_seal, read_json, verify_file, write_sealed

RECORD = "export.json"


@dataclass(frozen=True)
class GraphRecord:
    """Files, back end and measurements of one exported graph."""

    file: str  # in the version folder: <graph>.onnx, or the network's weights (their index, if split) for torch
    files: dict[str, dict[str, Any]]  # that file and the files that it refers to -> {"sha256", "bytes"}
    backend: Backend
    parity: float | None  # ONNX against torch: largest error / largest value; None when ONNX was not written
    ms: dict[Backend, float]  # median milliseconds of a call for one request; empty when the back end was forced


@dataclass(frozen=True)
class ExportRecord:
    """`export.json` of a version folder: everything a stage needs to know about what it serves."""

    bundle: str  # name
    digest: str
    spec: BackboneSpec
    contract_version: int
    graphs: dict[str, GraphRecord]
    files: dict[str, dict[str, Any]]  # not of a graph, such as model.py and tokenizers -> {"sha256", "bytes"}

    def write(self, folder: Path) -> None:
        """Write the record, with the hash of its own content, into a version folder."""
        write_sealed(folder / RECORD, asdict(self))

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> "ExportRecord":
        """Read a version folder's record and verify it and every file but those of graphs (see `load_graphs`).

        Raises:
            BundleError: the record is missing, edited, or of another contract version, or a file is missing or damaged;
                the message names the file.
        """
        path = Path(folder) / RECORD
        record = cls._parse(path)
        if record.contract_version != CONTRACT_VERSION:
            raise BundleError(
                f"{path}: written for contract version {record.contract_version}, this code speaks {CONTRACT_VERSION}: "
                "export again"
            )
        for name, expected in record.files.items():
            verify_file(path.parent, RECORD, name, expected)
        return record

    @classmethod
    def _parse(cls, path: Path) -> "ExportRecord":
        if not path.is_file():
            raise BundleError(f"{path}: missing; `python -m export` writes it")
        try:
            values = read_json(path)
        except ValueError as error:
            raise BundleError(str(error)) from None
        if "contract_version" in values and SEAL not in values:
            raise BundleError(f"{path}: written by an older version of this code, without its own hash: export again")
        check_seal(path, values)
        try:
            return cls(
                bundle=str(values["bundle"]),
                digest=str(values["digest"]),
                spec=BackboneSpec.from_dict(values["spec"]),
                contract_version=int(values["contract_version"]),
                graphs={str(name): GraphRecord(**graph) for name, graph in values["graphs"].items()},
                files=dict(values["files"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleError(f"{path}: not a valid export record ({type(error).__name__}: {error})") from None
