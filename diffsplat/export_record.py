"""`export.json`: what a version folder of the served repository holds, and how each graph was chosen."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diffsplat_client.contract import CONTRACT_VERSION

from diffsplat.backbones import BackboneSpec
from diffsplat.graph import Backend
from diffsplat.weights import BundleError

RECORD = "export.json"


@dataclass(frozen=True)
class GraphRecord:
    """What `export` found out about one graph."""

    file: str  # in the version folder: <graph>.onnx, or the network's weights (their index, if split) for torch
    files: dict[str, dict[str, Any]]  # that file, and what it refers to -> {"sha256", "bytes"}
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

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> "ExportRecord":
        """Read a version folder's record.

        Raises:
            BundleError: it is missing, unreadable, or of another contract version; the message names the file.
        """
        path = Path(folder) / RECORD
        if not path.is_file():
            raise BundleError(f"{path}: missing; `python -m export` writes it")
        try:
            values = json.loads(path.read_text())
            record = cls(
                bundle=str(values["bundle"]),
                digest=str(values["digest"]),
                spec=BackboneSpec.from_dict(values["spec"]),
                contract_version=int(values["contract_version"]),
                graphs={str(name): GraphRecord(**graph) for name, graph in values["graphs"].items()},
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleError(f"{path}: not a valid export record ({type(error).__name__}: {error})") from None
        if record.contract_version != CONTRACT_VERSION:
            raise BundleError(
                f"{path}: written for contract version {record.contract_version}, this code speaks {CONTRACT_VERSION}: "
                "export again"
            )
        return record
