"""No room has import circles: its modules can be read from the bottom up. Lazy imports inside functions count too."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = {"diffsplat": ROOT, "diffsplat_client": ROOT / "client", "export": ROOT, "training": ROOT, "benchmarks": ROOT}
MAX_FILES_AT_THE_TOP = 12  # of the library: its folders tell the flow, not a list of files
SERVING = {  # folder -> those that it may import; CONTRIBUTING.md has the same table
    "engine": set(),
    "stage_models": {"engine"},
    "repository": set(),
    "server": {"repository"},
    "supervisor": {"repository", "server"},
    "edge": {"engine", "server", "supervisor"},
}
SHARED_BY_SERVING = {"errors", "drain", "prerequisites"}


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_graph(room: str) -> dict[str, set[str]]:
    """Module -> modules of the same room that it imports, wherever in the file."""
    root = ROOMS[room]
    files = {module_name(path, root): path for path in (root / room).rglob("*.py")}
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        imported = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                assert not node.level, f"{path}: relative import"
                imported |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        graph[name] = {module for module in imported if module in files and module != name}
        if path.name != "__init__.py":  # a package's own page may gather its modules; they do not need it
            graph[name] -= {name.rpartition(".")[0]}
    return graph


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_has_no_import_circle(room: str) -> None:
    graph = import_graph(room)
    assert sum(map(len, graph.values())) > 5  # the walk found the imports
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import circle: {' <- '.join(error.args[1])}")


def test_folders_of_serving_import_what_the_table_says() -> None:
    """Arrows between them point one way, and everything else of serving is either shared by them or above them."""
    used: dict[str, set[str]] = {}
    for module, imported in import_graph("diffsplat").items():
        room, *part = module.removeprefix("diffsplat.").split(".")
        if room == "serving" and part:
            names = {name.split(".")[2] for name in imported if name.startswith("diffsplat.serving.")}
            used[part[0]] = used.get(part[0], set()) | names - {part[0]} - SHARED_BY_SERVING
    assert {name: used.pop(name) for name in SERVING} == SERVING
    assert {name: used.pop(name) for name in SHARED_BY_SERVING} == dict.fromkeys(SHARED_BY_SERVING, set())
    assert set(used) == {"commands"}


def test_the_library_has_few_files_at_its_top() -> None:
    assert len(list((ROOT / "diffsplat").glob("*.py"))) <= MAX_FILES_AT_THE_TOP
