"""README's tree names every room, and the map of docs/architecture.md names every file; links lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("diffsplat", "client/diffsplat_client", "export", "training", "benchmarks")
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "client/README.md",
    "docs/api.md",
    "docs/architecture.md",
    "docs/data.md",
    "docs/edge.md",
    "docs/formats.md",
    "docs/gpu.md",
    "docs/operation.md",
    "docs/reconstruction.md",
)


def tree() -> list[str]:
    """Paths of the README's tree, those of indented lines below the room before them."""
    text = (ROOT / "README.md").read_text().split("```text\n", 1)[1].split("```", 1)[0]
    paths, room = [], ""
    for line in text.splitlines():
        names = re.findall(r"[\w./]+/(?=\s|$)|[\w./]+\.\w+(?=\s|$)", re.split(r" {3,}(?=\S)", line.strip())[0])
        if not line.startswith(" "):
            room = names[0]
        paths += [name if not line.startswith(" ") else room + name for name in names]
    return paths


def file_map() -> dict[str, str]:
    """Path -> description of docs/architecture.md; folders end with a slash."""
    text = (ROOT / "docs/architecture.md").read_text().split("## Every file", 1)[1]
    described, folder = {}, ""
    for line in text.split("```text\n", 1)[1].split("```", 1)[0].splitlines():
        name, _, description = line.strip().partition(" ")
        if not line.startswith(" "):
            folder = name
        path = name if not line.startswith(" ") else folder + name
        assert path not in described, f"{path} stands twice"
        described[path] = description.strip()
    return described


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


def test_the_map_of_files_is_complete_and_true() -> None:
    """A new file gets a line below its folder in docs/architecture.md, and a folder one of its own."""
    paths = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    files = {path.relative_to(ROOT).as_posix() for path in paths if path.name != "__init__.py"}
    folders = {path.parent.relative_to(ROOT).as_posix() + "/" for path in paths}
    described = file_map()
    assert len(files) > 150
    assert described.keys() - files - folders == set(), "docs/architecture.md names files that are gone"
    assert (files | folders) - described.keys() == set(), "add a line for each of these files to docs/architecture.md"
    assert not [path for path, description in described.items() if not description]


@pytest.mark.parametrize("page", PAGES)
def test_links_and_files_in_prose_exist(page: str) -> None:
    folder, text = (ROOT / page).parent, (ROOT / page).read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if not link.startswith("http")]
    assert not [link for link in links if not (folder / link).exists()]
    prose = text.split("## Every file", 1)[0]
    known = [path for room in (*ROOMS, "tests", "model_repository", "docs") for path in (ROOT / room).rglob("*.*")]
    named = set(re.findall(r"`([\w/]+\.(?:py|pbtxt|md))`", prose))
    assert not [name for name in named if not any(f"/{path.relative_to(ROOT)}".endswith(f"/{name}") for path in known)]
