"""Where a checkpoint comes from: a folder in the hub's layout, or a repository of the hub, of which only what is needed
is downloaded (into the hub's own cache; a broken download continues).
"""

import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol

from export.importing.layout import CheckpointError


class Origin(Protocol):
    """Where files come from."""

    label: str  # what to call it in errors and in the lineage

    def names(self) -> frozenset[str]:
        """All files, with forward slashes."""
        ...

    def fetch(self, names: Collection[str]) -> Path:
        """Folder below which these files now are."""
        ...

    def describe(self) -> dict[str, str]:
        """For the lineage; names no folder of this machine."""
        ...


class LocalFolder:
    """A folder in the hub's layout."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.label = str(root)

    def names(self) -> frozenset[str]:
        """All files below it; hidden folders, such as a download's bookkeeping, are passed over."""
        found = []
        for folder, below, files in os.walk(self.root, followlinks=True):
            below[:] = [name for name in below if not name.startswith(".")]
            found += [(Path(folder) / name).relative_to(self.root).as_posix() for name in files]
        return frozenset(found)

    def fetch(self, names: Collection[str]) -> Path:
        """Nothing to do."""
        return self.root

    def describe(self) -> dict[str, str]:
        """Its own name, not where it lies."""
        return {"folder": self.root.resolve().name}


class HubRepository:
    """A repository of the hub, pinned to the revision that is newest when it is first asked."""

    def __init__(self, repo_id: str) -> None:
        self.repo_id = self.label = repo_id
        self._found: Any = None

    def names(self) -> frozenset[str]:
        """What the hub lists. CheckpointError when it does not answer."""
        return frozenset(entry.rfilename for entry in self._info().siblings or ())

    def fetch(self, names: Collection[str]) -> Path:
        """Download what is not in the cache yet. CheckpointError when that fails; the next try continues."""
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(self.repo_id, revision=self._info().sha, allow_patterns=sorted(names)))
        except Exception as error:  # the hub's client lets errors of three libraries through
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

    def _unreachable(self, error: Exception) -> CheckpointError:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return CheckpointError(
            f"{self.repo_id}: not to be had from the hub ({reason}). A repository with conditions needs a login "
            "(`hf auth login`); without a network, give a local folder with the same files"
        )


def open_origin(source: str) -> Origin:
    """A folder where there is one of that name, else a repository of the hub.

    Raises:
        CheckpointError: it is neither.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return LocalFolder(path)
    if path.exists():
        raise CheckpointError(f"{source}: is a file; give the folder that holds TAG/checkpoints/ITERATION")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not source.startswith("."):
        return HubRepository(source)
    raise CheckpointError(f"{source}: no such folder, and not the name OWNER/REPOSITORY of a repository of the hub")
