"""`export.json`: what a version folder of the served repository holds, and how each graph was chosen."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diffsplat_client.contract import CONTRACT_VERSION

from diffsplat.backbones import BackboneSpec
from diffsplat.graph import Backend, DeviceType, Precision
from diffsplat.integrity import SEAL, BundleError, check_seal, read_json, verify_file, write_sealed

RECORD = "export.json"


@dataclass(frozen=True)
class Candidate:
    """One way to run a graph that an export tried."""

    backend: Backend
    device: DeviceType
    precision: Precision
    error: float | None = None  # largest error / largest value against torch in float32; None: not compared
    ms: float | None = None  # median milliseconds of a call for one request; None: not timed
    megabytes: float | None = None  # of its files; None: not built
    memory_mb: float | None = None  # that it takes of its device: on CUDA measured, on a CPU its weights
    refused: str = ""  # why it cannot serve the graph


@dataclass(frozen=True)
class GraphRecord:
    """Files of one exported graph, the back end chosen for it, and what it was chosen from."""

    file: str  # in the version folder: the first of `files`
    files: dict[str, dict[str, Any]]  # the back end's files, or the network's weights for torch -> {"sha256", "bytes"}
    backend: Backend
    device: DeviceType
    precision: Precision
    candidates: tuple[Candidate, ...]  # every one that was tried, the chosen one among them

    @property
    def chosen(self) -> Candidate:
        """The candidate that serves the graph."""
        mine = (self.backend, self.device, self.precision)
        return next(each for each in self.candidates if (each.backend, each.device, each.precision) == mine)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "GraphRecord":
        """The record of a graph in `export.json`."""
        return cls(**{**values, "candidates": tuple(Candidate(**each) for each in values["candidates"])})


@dataclass(frozen=True)
class ExportRecord:
    """`export.json` of a version folder: everything a stage needs to know about what it serves."""

    bundle: str  # name
    digest: str
    spec: BackboneSpec
    contract_version: int
    device: DeviceType  # what its graphs were built for
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
        record = cls.parse(path)
        if record.contract_version != CONTRACT_VERSION:
            raise BundleError(
                f"{path}: written for contract version {record.contract_version}, this code speaks {CONTRACT_VERSION}: "
                "export again"
            )
        for name, expected in record.files.items():
            verify_file(path.parent, RECORD, name, expected)
        return record

    @classmethod
    def parse(cls, path: Path) -> "ExportRecord":
        """Read a record without verifying files or contract version. BundleError names it when it is not valid."""
        if not path.is_file():
            raise BundleError(f"{path}: missing; `python -m export` writes it")
        try:
            values = read_json(path)
        except ValueError as error:
            raise BundleError(str(error)) from None
        if "contract_version" in values and (SEAL not in values or "device" not in values):
            raise BundleError(f"{path}: written by an older version of this code: export again")
        check_seal(path, values)
        try:
            return cls(
                bundle=str(values["bundle"]),
                digest=str(values["digest"]),
                spec=BackboneSpec.from_dict(values["spec"]),
                contract_version=int(values["contract_version"]),
                device=values["device"],
                graphs={str(name): GraphRecord.from_dict(graph) for name, graph in values["graphs"].items()},
                files=dict(values["files"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleError(f"{path}: not a valid export record ({type(error).__name__}: {error})") from None
