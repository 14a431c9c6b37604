"""Files -> ids and captions of objects."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from training.data.meshes.loading import SUFFIXES

_SAYS_NOTHING = frozenset(
    {"model", "models", "mesh", "scene", "object", "obj", "untitled", "textured", "export", "final"}
)


def find_meshes(root: Path) -> list[Path]:
    """Every mesh file below a folder, sorted, or the one file that `root` is.

    Raises:
        ValueError: there is none.
    """
    if root.is_file():
        found = [root] if root.suffix.lower() in SUFFIXES else []
    elif root.is_dir():
        found = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    else:
        raise ValueError(f"meshes = {root} does not exist")
    if not found:
        raise ValueError(f"meshes = {root} holds no file with a suffix of {' '.join(SUFFIXES)}")
    return found


def object_ids(paths: Sequence[Path], root: Path) -> list[str]:
    """An id per file: its path below `root` without suffix, joined by "-"; with the suffix where two agree.

    A file named like its folder gives one part: chairs/armchair/armchair.obj -> chairs-armchair.

    Raises:
        ValueError: two files would have the same id.
    """
    base = root if root.is_dir() else root.parent
    parts = [path.relative_to(base).with_suffix("").parts for path in paths]
    plain = ["-".join(part[:-1] if part[-1:] == part[-2:-1] else part) for part in parts]
    plain_counts = Counter(plain)
    ids = [
        name if plain_counts[name] == 1 else f"{name}-{path.suffix[1:].lower()}"
        for name, path in zip(plain, paths, strict=True)
    ]
    ids = [re.sub(r"[^\w\-]+", "_", name).lstrip("._") or "object" for name in ids]
    counts = Counter(ids)
    for name in ids:
        if counts[name] > 1:
            files = [str(path) for path, other in zip(paths, ids, strict=True) if other == name]
            raise ValueError(f"{' and '.join(files)} would both have the id {name!r}; rename one of them")
    return ids


def caption_of(path: Path) -> str:
    """The words of the file's name, or its folder's where it says nothing: "wooden_chair_02" -> "wooden chair".

    Empty where neither says anything.
    """
    for name in (path.stem, path.parent.name):
        spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
        words = [word.lower() for word in re.split(r"[\W\d_]+", spaced) if word]
        if any(word not in _SAYS_NOTHING and len(word) > 1 for word in words):
            return " ".join(words)
    return ""
