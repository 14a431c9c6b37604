"""Records as folders of files, one folder per object.

The parts lie in the object's folder itself, as `training data render` writes them, or as in GObjaverse each view's in a
folder of its own: ``OBJECT/campos_512_v4/00000/00000.png``. An object's id is the path of its folder below the root.
"""

import functools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from training.data.record import BrokenRecord
from training.data.tar_store import GOBJAVERSE_FOLDER

_VIEW = re.compile(r"\d{5}")
_DEEPEST = 4  # folders between root and object
_LISTINGS_KEPT = 4096  # objects whose list of files stays in memory


class FolderStore:
    """All objects below a folder, sorted by id."""

    def __init__(self, root: Path) -> None:
        self.kind = "folder"
        self.path = root
        self._folders = sorted(_object_folders(root, 0), key=lambda folder: folder.as_posix())
        self._files = functools.lru_cache(maxsize=_LISTINGS_KEPT)(self._list)

    def __len__(self) -> int:
        return len(self._folders)

    def uid(self, index: int) -> str:
        """Path of the object's folder below the root."""
        folder = self._folders[index]
        return folder.name if folder == self.path else folder.relative_to(self.path).as_posix()

    def parts(self, index: int) -> Mapping[str, Path]:
        """Names of the record's parts."""
        return self._files(index)

    def read(self, index: int, names: Sequence[str]) -> dict[str, bytes]:
        """Those of the named parts that the record has."""
        files = self._files(index)
        try:
            return {name: files[name].read_bytes() for name in names if name in files}
        except OSError as error:
            raise BrokenRecord(f"{error.filename}: cannot be read: {error.strerror}") from error

    def blocks(self) -> None:
        """Every record is as cheap alone."""

    def _list(self, index: int) -> dict[str, Path]:
        folder = self._folders[index]
        try:
            found = {name: folder / name for name in os.listdir(folder)}
            views = folder / GOBJAVERSE_FOLDER if GOBJAVERSE_FOLDER in found else folder
            for name in os.listdir(views):
                if _VIEW.fullmatch(name):
                    found |= {part: views / name / part for part in os.listdir(views / name)}
        except OSError as error:
            raise BrokenRecord(f"{error.filename}: cannot be read: {error.strerror}") from error
        text = folder.with_name(folder.name + ".txt")  # captions beside the folder
        return {"txt": text, **found} if text.is_file() else found


def is_object(folder: Path) -> bool:
    """Whether a folder holds the views of one object."""
    if (folder / GOBJAVERSE_FOLDER).is_dir():
        return True
    with os.scandir(folder) as entries:
        return any(_VIEW.fullmatch(entry.name.partition(".")[0]) and _is_view(entry) for entry in entries)


def _is_view(entry: os.DirEntry[str]) -> bool:
    if entry.is_dir():
        return os.path.exists(f"{entry.path}/{entry.name}.json") or os.path.exists(f"{entry.path}/{entry.name}.png")
    return entry.name.endswith((".png", ".json"))


def _object_folders(folder: Path, depth: int) -> Iterator[Path]:
    try:
        if is_object(folder):
            yield folder
            return
        inner = [entry for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")]
    except OSError as error:
        raise ValueError(f"{error.filename}: cannot be read: {error.strerror}") from error
    if depth < _DEEPEST:
        for entry in inner:
            yield from _object_folders(Path(entry.path), depth + 1)
