"""The README's tree names the rooms of the repository: each of them, and no other."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("diffsplat", "client/diffsplat_client", "export", "training", "benchmarks")


def tree() -> list[str]:
    """Paths of the tree, those of indented lines below the room before them."""
    text = (ROOT / "README.md").read_text().split("```text\n", 1)[1].split("```", 1)[0]
    paths, room = [], ""
    for line in text.splitlines():
        names = re.findall(r"[\w./]+/(?=\s|$)|[\w./]+\.\w+(?=\s|$)", re.split(r" {3,}(?=\S)", line.strip())[0])
        if not line.startswith(" "):
            room = names[0]
        paths += [name if not line.startswith(" ") else room + name for name in names]
    return paths


def test_every_path_in_the_tree_exists() -> None:
    assert len(tree()) > 30
    assert not [path for path in tree() if not (ROOT / path).exists()]


def test_every_room_is_in_the_tree() -> None:
    folders = {
        path.parent.relative_to(ROOT).as_posix() + "/"
        for room in ROOMS
        for path in [*(ROOT / room).glob("*.py"), *(ROOT / room).glob("*/*.py")]
    }
    assert len(folders) > 15
    assert not folders - set(tree())
