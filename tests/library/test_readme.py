"""The README's tree and the repository name the same files."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("diffsplat", "client/diffsplat_client", "export", "training", "benchmarks")


def tree() -> str:
    return (ROOT / "README.md").read_text().split("```text\n", 1)[1].split("```", 1)[0]


def test_every_file_named_in_the_tree_exists() -> None:
    names = set(re.findall(r"[\w/]+\.(?:py|pbtxt)", tree()))
    assert len(names) > 40
    paths = [
        path.relative_to(ROOT).as_posix() for room in (*ROOMS, "model_repository") for path in ROOT.glob(f"{room}/**/*")
    ]
    missing = [name for name in names if not any(f"/{path}".endswith(f"/{name}") for path in paths)]
    assert not missing


def test_every_module_of_the_library_and_client_is_in_the_tree() -> None:
    text = tree()
    modules = [
        path.name
        for room in ("diffsplat", "client/diffsplat_client", "export")
        for path in (ROOT / room).rglob("*.py")
        if not path.name.startswith("__") and path.parent.name != "commands"
    ]
    assert len(modules) > 50
    assert not [name for name in modules if name not in text]
