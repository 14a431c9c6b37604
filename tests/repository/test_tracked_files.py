"""What git tracks works on any machine: no paths of one, no addresses of package indices, no large files."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_BYTES = 16_000_000
# brackets, so that this file does not refuse itself
REFUSED = {
    "a path of one machine": re.compile(r"(?<![\w.~-])/(?:[w]ork|[r]oot|[h]ome)/"),
    "a package index": re.compile(
        r"[p]ypi\.org|[p]ythonhosted\.org|[n]pmjs\.(?:org|com)|[p]roxy\.golang|[c]rates\.io|download\.[p]ytorch"
        r"|--(?:extra-)?[i]ndex-url|[s]imple/\?|[r]egistry\.(?:yarnpkg|npm)"
    ),
}


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


@pytest.mark.parametrize("what", REFUSED)
def test_no_text_names(tracked: list[Path], what: str) -> None:
    found, texts = [], 0
    for path in tracked:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        texts += 1
        for number, line in enumerate(text.splitlines(), 1):
            if match := REFUSED[what].search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {match[0]}")
    assert texts > 300
    assert not found


def test_files_are_small(tracked: list[Path]) -> None:
    sizes = {str(path.relative_to(ROOT)): path.stat().st_size for path in tracked}
    assert {name: size for name, size in sizes.items() if size > MAX_BYTES} == {}


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("a path of one machine", "see /wor" + "k/main/README.md"),
        ("a path of one machine", 'open("/hom' + 'e/me/file")'),
        ("a package index", "pip install --index-" + "url https://example.com x"),
        ("a package index", "https://pyp" + "i.org/simple"),
    ],
)
def test_what_is_refused_is_seen(what: str, line: str) -> None:
    assert REFUSED[what].search(line)
