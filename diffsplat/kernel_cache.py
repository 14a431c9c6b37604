"""Where numba keeps compiled kernels, so that an update never runs beside stale ones.

numba's cache knows a function by its own file alone, but kernels inline others of their folder. The place therefore
carries a digest of all sources of the folder: when one of them changes, all are compiled anew.
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
    """While decorating, make numba look first for a place in a folder of this version of the kernels in `folder`.

    It lies below ``NUMBA_CACHE_DIR`` where that is set, else below the folder's ``__pycache__``.
    """
    config: Any = numba.config  # its settings appear at run time
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
