"""The log of a server: where it is kept, what it says about loading, and why a server failed."""

import os
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from diffsplat.serving.errors import ServerStartError

KEPT_LOGS = 10  # in one folder, that of the present run among them
_LAST_LINES = 15

# as the server writes it, with the traceback's line breaks escaped
_LOAD_FAILURE = re.compile(
    r"""\bE \d+ .*"failed to load '(\w+)' version \d+: (?:Internal: )?(.*?)(?:\\n.*)?"$""", re.MULTILINE
)
_OTHER_CODE = re.compile(r"No module named 'diffsplat|cannot import name .* from 'diffsplat")
_LOADING = (
    (re.compile(r'"loading: (\w+):(\d+)'), "loading {} (version {})"),
    (re.compile(r'"successfully loaded \'(\w+)\''), "{} is ready"),
)


def state_folder() -> Path:
    """Where logs are kept that outlive their server: $XDG_STATE_HOME/diffsplat or ~/.local/state/diffsplat."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "diffsplat"


def new_log(folder: Path) -> Path:
    """An empty log for a run that starts now, the oldest ones removed; ServerStartError if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in sorted(folder.glob("server-*.log"))[: -(KEPT_LOGS - 1)]:
            old.unlink(missing_ok=True)
        path = folder / f"server-{datetime.now():%Y%m%d-%H%M%S-%f}.log"
        path.touch()
    except OSError as error:
        raise ServerStartError(f"{folder}: the log cannot be written ({error.strerror}); choose a log folder") from None
    return path


class LoadingReport:
    """Reports each model that starts loading or is ready, as the log grows."""

    def __init__(self, path: Path, on_progress: Callable[[str], None]) -> None:
        self._path = path
        self._on_progress = on_progress
        self._position = 0

    def update(self) -> None:
        """Read the complete lines that were written since the last call."""
        with self._path.open("rb") as log:
            log.seek(self._position)
            text = log.read()
        end = text.rfind(b"\n") + 1
        self._position += end
        for line in text[:end].decode(errors="replace").splitlines():
            for pattern, report in _LOADING:
                if match := pattern.search(line):
                    self._on_progress(report.format(*match.groups()))


def explain_failure(path: Path) -> str:
    """What a log says about a failure: one line per model that could not be loaded, else its last lines."""
    text = path.read_text(errors="replace") if path.exists() else ""
    failures = _LOAD_FAILURE.findall(text)
    if failures:
        lines = [f"model {model}: {reason}" for model, reason in dict.fromkeys(failures)]
        if any(_OTHER_CODE.search(line) for line in lines):
            lines.append(
                "the repository was exported by another version of this code: `python -m export` makes it anew"
            )
        return "\n".join(lines)
    return "\n".join(line for line in text.splitlines()[-_LAST_LINES:] if line.strip())
