"""Where a checkpoint comes from: a folder in the hub's layout, a folder of the hub's cache, or a repository of the hub.

Of a repository only the files that are needed are downloaded, into the hub's own cache; a broken download continues.
"""

import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol

from export.importing.layout import SourceError

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_CACHE_PREFIX = "models--"
# base models that were removed from the hub, and where their files are now
_MOVED = {"runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5"}


class Origin(Protocol):
    """A source of files."""

    label: str  # its name in errors

    def names(self) -> frozenset[str]:
        """Names of all files, with forward slashes."""
        ...

    def fetch(self, names: Collection[str]) -> Path:
        """Make these files available; returns the folder that contains them."""
        ...

    def describe(self) -> dict[str, str]:
        """Entry for the lineage, without paths of this machine."""
        ...


class LocalFolder:
    """A folder in the hub's layout."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.label = str(root)

    def names(self) -> frozenset[str]:
        """All files below the folder except those in hidden folders, such as a download's bookkeeping."""
        found = []
        for folder, below, files in os.walk(self.root, followlinks=True):
            below[:] = [name for name in below if not name.startswith(".")]
            found += [(Path(folder) / name).relative_to(self.root).as_posix() for name in files]
        return frozenset(found)

    def fetch(self, names: Collection[str]) -> Path:
        """Check that the files are there. SourceError names a Git LFS pointer or a link to a missing file."""
        for name in sorted(names):
            _check_is_content(self.root / name)
        return self.root

    def describe(self) -> dict[str, str]:
        """The name of the folder without its path."""
        return {"folder": self.root.resolve().name}


def _check_is_content(path: Path) -> None:
    if not path.is_file():
        raise SourceError(
            f"{path}: a link to {os.readlink(path)}, which is missing: the download is incomplete, repeat it"
            if path.is_symlink()
            else f"{path}: missing"
        )
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise SourceError(
                f"{path}: a Git LFS pointer, not the file itself; fetch the files with `git lfs pull` in that clone"
            )


class CachedRepository(LocalFolder):
    """A snapshot of a repository in the cache of the hub's client.

    Args:
        root: its folder `models--OWNER--NAME/snapshots/REVISION`.
        repo_id: OWNER/NAME.
    """

    def __init__(self, root: Path, repo_id: str) -> None:
        super().__init__(root)
        self.repo_id = repo_id

    def describe(self) -> dict[str, str]:
        """Repository and revision, as after a download."""
        return {"repository": self.repo_id, "revision": self.root.name}


def _open_cache(root: Path) -> CachedRepository:
    """The snapshot that `main` names in a cache folder `models--OWNER--NAME`, or else the only one."""
    snapshots = {path.name: path for path in (root / "snapshots").glob("*") if path.is_dir()}
    main = root / "refs" / "main"
    revision = main.read_text().strip() if main.is_file() else ""
    if revision not in snapshots and len(snapshots) != 1:
        found = ", ".join(sorted(snapshots)) or "none"
        raise SourceError(
            f"{root}: a cache of the hub without a snapshot for refs/main; give the folder of one in "
            f"{root / 'snapshots'}, which has: {found}"
        )
    snapshot = snapshots.get(revision) or next(iter(snapshots.values()))
    return CachedRepository(snapshot, root.name.removeprefix(_CACHE_PREFIX).replace("--", "/"))


class HubRepository:
    """A repository of the hub, pinned to the newest revision at the first request."""

    def __init__(self, repo_id: str, option: str) -> None:
        self.repo_id = self.label = repo_id
        self.option = option  # of the command line, for errors
        self._found: Any = None

    def names(self) -> frozenset[str]:
        """Files that the hub lists. Raises SourceError if it cannot be reached."""
        return frozenset(entry.rfilename for entry in self._info().siblings or ())

    def fetch(self, names: Collection[str]) -> Path:
        """Download files that are not in the cache. Raises SourceError on failure; the next attempt continues."""
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(self.repo_id, revision=self._info().sha, allow_patterns=sorted(names)))
        except Exception as error:  # the hub's client raises errors of three libraries
            raise self._unreachable(error) from error

    def describe(self) -> dict[str, str]:
        """Repository and revision."""
        return {"repository": self.repo_id, "revision": str(self._info().sha)}

    def _info(self) -> Any:
        from huggingface_hub import HfApi

        if self._found is None:
            try:
                self._found = HfApi().model_info(self.repo_id)
            except Exception as error:
                raise self._unreachable(error) from error
        return self._found

    def _unreachable(self, error: Exception) -> SourceError:
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

        if isinstance(error, GatedRepoError):
            return SourceError(
                f"{self.repo_id}: has conditions on the hub; accept them on its page, log in with `hf auth login`, "
                f"or give a local folder with the same files as {self.option}"
            )
        if isinstance(error, RepositoryNotFoundError):
            successor = _MOVED.get(self.repo_id)
            instead = f"{successor}, which holds the same files, or" if successor else "another repository or"
            return SourceError(
                f"{self.repo_id}: no such repository on the hub: removed, renamed, misspelt or private; "
                f"give {instead} a local folder with its files as {self.option} (a private one needs `hf auth login`)"
            )
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return SourceError(
            f"{self.repo_id}: the hub cannot be reached ({reason}); without a network, give a local folder with the "
            f"same files as {self.option}"
        )


def open_origin(source: str, option: str = "SOURCE") -> Origin:
    """Open a folder, or if there is none of that name, a repository of the hub.

    Args:
        source: folder in the hub's layout, folder of the hub's cache, or OWNER/REPOSITORY.
        option: argument of the command line that gave it, for errors.

    Raises:
        SourceError: the source does not exist or is of another kind.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        if path.name.startswith(_CACHE_PREFIX) and (path / "snapshots").is_dir():
            return _open_cache(path)
        if cached := sorted(path.glob(f"{_CACHE_PREFIX}*/snapshots")):
            names = ", ".join(folder.parent.name for folder in cached)
            raise SourceError(f"{source}: the cache of the hub; give one of its folders as {option}: {names}")
        return LocalFolder(path)
    if path.exists():
        raise SourceError(f"{source}: is a file; give the folder that holds TAG/checkpoints/ITERATION")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not source.startswith("."):
        return HubRepository(source, option)
    raise SourceError(f"{source}: no such folder, and not of the form OWNER/REPOSITORY")
