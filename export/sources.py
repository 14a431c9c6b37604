"""The code that decides what an export looks like: every module of ours that it can import, found by its imports."""

import ast
import functools
import hashlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENTRY = "export.repository"  # whatever an export runs is reachable from here
_PACKAGES = {"export": "export", "diffsplat": "diffsplat", "diffsplat_client": "client/diffsplat_client"}


def export_sources(root: Path = ROOT) -> dict[str, Path]:
    """Module -> its file, for all modules of the repository at `root` that an export can import.

    Imports inside functions count. So do strings that are exactly the name of a module: the tables that keep heavy
    libraries out of the start (`networks`, `denoisers.graph_inputs.FAMILIES`) name modules that way.
    """
    files = _modules(root)
    reached: dict[str, Path] = {}
    waiting = [ENTRY]
    while waiting:
        module = waiting.pop()
        if module in reached or module not in files:
            continue
        reached[module] = files[module]
        waiting.extend(_named_modules(files[module]))
    # Importing a module runs the __init__.py of all packages around it; what these import for others affects no export.
    parts = [module.split(".") for module in reached]
    packages = {".".join(names[:depth]) for names in parts for depth in range(1, len(names))}
    return dict(sorted({**{package: files[package] for package in packages if package in files}, **reached}.items()))


def code_hash(root: Path = ROOT) -> str:
    """Changes whenever any of `export_sources` does."""
    code = hashlib.sha256()
    for module, path in export_sources(root).items():
        code.update(hashlib.sha256(module.encode()).digest() + hashlib.sha256(path.read_bytes()).digest())
    return code.hexdigest()


@functools.cache
def running_code_hash() -> str:
    """`code_hash` of this repository, read once per process: what has been imported does not change any more."""
    return code_hash()


def _modules(root: Path) -> dict[str, Path]:
    """All modules of the packages that an export is made of."""
    files = {}
    for package, folder in _PACKAGES.items():
        for path in (root / folder).rglob("*.py"):
            parts = (package, *path.relative_to(root / folder).with_suffix("").parts)
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def _named_modules(path: Path) -> set[str]:
    """Names that a file imports, and every string in it; the caller drops those that are not modules."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{path}: relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)
    return names
