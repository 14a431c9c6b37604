"""Names that all of the export room shares."""

from collections.abc import Callable
from typing import Literal

RuntimeChoice = Literal["auto", "onnxruntime", "torch"]
Progress = Callable[[str, int, int], None]  # (what is done now, steps done, steps in all)

VERSION = "1"  # version folder of every model


class ExportError(ValueError):
    """A graph or a repository cannot be exported; the message says which and why."""
