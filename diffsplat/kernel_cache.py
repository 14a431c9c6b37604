"""A cache folder for numba's compiled kernels that stale kernels cannot survive in.

numba's cache watches the file of a function only, but kernels inline functions from other files of their folder. The
cache's name therefore contains a hash of all sources of the folder: when one changes, all are compiled again.
"""

import functools
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba


@contextmanager
def kernel_cache(folder: Path) -> Iterator[None]:
    """Decorate functions of `folder` within this context to cache them for the present version of its sources.

    The cache lies below ``NUMBA_CACHE_DIR`` if that is set, else below the folder's ``__pycache__``.
    """
    config: Any = numba.config  # its attributes are created at run time
    before = config.CACHE_DIR
    config.CACHE_DIR = str(Path(before or folder / "__pycache__") / f"kernels-{_digest(folder)}")
    try:
        yield
    finally:
        config.CACHE_DIR = before


@functools.cache
def _digest(folder: Path) -> str:
    sources = b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))
    return hashlib.sha256(sources).hexdigest()[:16]
