"""The versions of a served repository: which it holds, which one it serves, and how that changes on disk.

    DIR/<model>/V/                     files of version V
    DIR/diffsplat/V/service/           the configurations of the ensembles and `export.json`, as version V needs them
    DIR/<ensemble>/config.pbtxt        those of the version that is served, and
    DIR/export.json                    its record
    DIR/<stage>/config.pbtxt           belongs to all versions: an operator may edit instances and parameters

Every ensemble names the version of its stages, so that a request meets one version in all of them, also while two are
loaded.
"""

import os
import re
import shutil
import tempfile
from pathlib import Path

from diffsplat_client.contract import ENSEMBLE, ENSEMBLES

from diffsplat.export_record import RECORD
from diffsplat.integrity import BundleError

CONFIG = "config.pbtxt"
_SERVED = re.compile(r'key: "version" value \{ string_value: "(\d+)" \}')
_POLICY = re.compile(r"version_policy \{ specific \{ versions: \[ \d+ \] \} \}")


def service_folder(repository: Path, version: str) -> Path:
    """Where the configurations of a version are kept."""
    return repository / ENSEMBLE / version / "service"


def list_versions(repository: Path) -> list[str]:
    """The complete versions of a repository, oldest first."""
    found = [path.parents[1].name for path in (repository / ENSEMBLE).glob(f"*/service/{RECORD}")]
    return sorted((name for name in found if name.isdigit()), key=int)


def served_version(repository: Path) -> str:
    """The version that the repository serves.

    Raises:
        BundleError: the folder is not a repository written by this version of `python -m export`.
    """
    path = repository / ENSEMBLE / CONFIG
    if not path.is_file():
        raise BundleError(f"{repository}: not an exported repository ({ENSEMBLE}/{CONFIG} is missing)")
    match = _SERVED.search(path.read_text())
    if match is None:
        raise BundleError(f"{path}: names no version; it was written by an older version of this code: export again")
    return match[1]


def configs_of(repository: Path, version: str | None) -> dict[str, Path]:
    """Model -> its configuration file, for one version, or (None) for the one that is served."""
    configs = {path.parent.name: path for path in sorted(repository.glob(f"*/{CONFIG}"))}
    if version is not None:
        configs |= {path.stem: path for path in service_folder(repository, version).glob("*.pbtxt")}
    return configs


def policy_of(version: str) -> str:
    """The line of a stage's configuration that names the version that Triton loads."""
    return f"version_policy {{ specific {{ versions: [ {version} ] }} }}"


def keep_service(repository: Path, version: str) -> None:
    """Keep the present ensembles as those of `version`; its record follows when it is written."""
    folder = service_folder(repository, version)
    folder.mkdir(parents=True)
    for model in ENSEMBLES:
        if (repository / model).is_dir():
            shutil.copyfile(repository / model / CONFIG, folder / f"{model}.pbtxt")


def install_version(staged: Path, repository: Path, version: str) -> None:
    """Move a version from a repository that holds nothing else into another one, which does not serve it yet.

    The ensemble's folder comes last: a version counts as complete when it is there.
    """
    for folder in sorted(staged.glob(f"*/{version}"), key=lambda path: path.parent.name == ENSEMBLE):
        target = repository / folder.parent.name / version
        shutil.rmtree(target, ignore_errors=True)  # left by an interrupted installation
        shutil.move(folder, target)


def remove_version(repository: Path, version: str) -> None:
    """Delete a version that is not served, the ensemble's folder first."""
    assert version != served_version(repository), f"version {version} is served"
    for folder in sorted(repository.glob(f"*/{version}"), key=lambda path: path.parent.name != ENSEMBLE):
        shutil.rmtree(folder)


def activate_version(repository: Path, version: str) -> None:
    """Make `version` the one that the next start serves. The ensemble's configuration, which decides, comes last."""
    configs = configs_of(repository, version)
    assert configs[ENSEMBLE].parent == service_folder(repository, version), f"version {version} is incomplete"
    for model in sorted(configs, key=lambda name: name == ENSEMBLE):
        text = configs[model].read_text()
        _replace(repository / model / CONFIG, _POLICY.sub(policy_of(version), text))
    _replace(repository / RECORD, (service_folder(repository, version) / RECORD).read_text())


def _replace(target: Path, text: str) -> None:
    """Write a file so that readers see the old one or the new one."""
    with tempfile.NamedTemporaryFile("w", dir=target.parent, prefix=f".{target.name}-", delete=False) as file:
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            os.replace(file.name, target)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
