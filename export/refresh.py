"""Bring a bundle into a repository that is served, as a new version, without a request lost.

    1. export the bundle beside the repository, as its next version, with the options of the served one
    2. let it pass the gates (`gates.py`)
    3. install its folders; let every `diffsplat serve` of the repository change over; write it down as the served one

Until the last step, whatever fails or interrupts leaves what is served. The version before stays for `roll_back`.
"""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from diffsplat.bundle import open_bundle
from diffsplat.export_record import RECORD
from diffsplat.integrity import BundleError, check_seal, read_json
from diffsplat.serving.repository.versions import (
    activate_version,
    install_version,
    list_versions,
    remove_version,
    served_version,
    service_folder,
)
from diffsplat.serving.supervisor.control import ControlError, ask_to_switch, servers_of
from export.common import BuildOptions, ExportError, ProgressCallback, served_stages
from export.gates import GateError, GateOptions, check_bundle, check_chain, check_quality
from export.repository import export_repository

DEFAULT_KEEP = 2  # versions: the served one, and the one before


@dataclass(frozen=True)
class Refreshed:
    """Result of `refresh` and `roll_back`."""

    version: str  # that is served now
    before: str
    servers: int  # how many running servers changed over

    @property
    def changed(self) -> bool:
        """False: it was served already."""
        return self.version != self.before


def refresh(
    bundle_root: str | Path,
    repository: str | Path,
    gates: GateOptions,
    keep: int = DEFAULT_KEEP,
    progress: ProgressCallback = lambda text, done, total: None,
    report: Callable[[str], None] = lambda line: None,
) -> Refreshed:
    """Export a bundle as the next version of a repository, and serve it if it passes the gates.

    Args:
        bundle_root: folder of the bundle; every file is verified.
        repository: folder written by `python -m export`, served or not.
        gates: what is asked of the new version.
        keep: how many versions the repository holds afterwards, the served one among them; at least 1.
        progress: called at every step of the export.
        report: called with one line per step of the gates and of the change.

    Raises:
        BundleError: bundle or repository is missing, damaged or older than this code.
        GateError: the bundle did not pass a gate; the message names it. Nothing has changed.
        ExportError: a server refused the version. It serves what it served before.
    """
    if keep < 1:
        raise ExportError(f"keep = {keep} must be at least 1")
    bundle, repository = open_bundle(bundle_root), Path(repository).absolute()
    before = served_version(repository)
    _clean_up(repository)
    path = service_folder(repository, before) / RECORD
    record = read_json(path)
    check_seal(path, record)
    made_from = record["made_from"]
    if made_from["digest"] == bundle.digest:
        report(f"{repository} serves this bundle already, as version {before}")
        return Refreshed(before, before, 0)
    check_bundle(bundle, served_stages(bundle), repository, before, gates)
    version = str(max(int(name) for name in list_versions(repository)) + 1)
    options = BuildOptions(**made_from["options"])
    with tempfile.TemporaryDirectory(dir=repository.parent, prefix=f".{repository.name}-") as temporary:
        staged = Path(temporary) / repository.name
        try:
            export_repository(
                bundle.root,
                staged,
                options.backend,
                options.device,
                options.precision,
                version=version,
                progress=progress,
            )
        except ExportError as error:
            raise GateError("parity", str(error)) from None
        report("gates: parity, objects")
        check_chain(bundle, staged, version, gates)
        check_quality(bundle, gates, report)
        install_version(staged, repository, version)
    try:
        servers = _serve(repository, version, before, report)
    except ExportError:
        remove_version(repository, version)
        raise
    others = [name for name in list_versions(repository) if name not in (version, before)]
    for old in others[: max(0, len(others) + 2 - max(keep, 2))]:
        remove_version(repository, old)
    if keep == 1:
        remove_version(repository, before)
    return Refreshed(version, before, servers)


def roll_back(
    repository: str | Path, version: str | None = None, report: Callable[[str], None] = lambda line: None
) -> Refreshed:
    """Serve a version again that the repository still holds: by default the newest before the served one.

    Raises:
        BundleError: it holds no such version.
        ExportError: a server refused the version. It serves what it served before.
    """
    repository = Path(repository).absolute()
    before, held = served_version(repository), list_versions(repository)
    older = [name for name in held if int(name) < int(before)]
    wanted = version or (older[-1] if older else None)
    if wanted is None or wanted not in held:
        what = f"version {wanted}" if wanted else f"version before {before}"
        raise BundleError(f"{repository}: holds no {what}, only {', '.join(held)}")
    return Refreshed(wanted, before, _serve(repository, wanted, before, report) if wanted != before else 0)


def _serve(repository: Path, version: str, before: str, report: Callable[[str], None]) -> int:
    """Let all running servers change over, and write the version down; how many servers there were."""
    servers = servers_of(repository)
    for index, server in enumerate(servers):
        try:
            ask_to_switch(server, version, report)
        except ControlError as error:
            for changed in servers[:index]:
                ask_to_switch(changed, before, report)
            raise ExportError(f"{repository}: version {version} is not served: {error}") from None
    if not servers:
        activate_version(repository, version)  # else the servers have written it down
        report(f"no server runs on {repository} here: the next start serves version {version}")
    return len(servers)


def _clean_up(repository: Path) -> None:
    """Remove folders of versions that are incomplete, left by an interrupted refresh."""
    complete = set(list_versions(repository))
    for folder in repository.glob("*/[0-9]*"):
        if folder.name not in complete:
            shutil.rmtree(folder)
