"""How CPU kernels are compiled: one decorator holds the flags that make loops SIMD.

* ``nogil``: frames run on Python threads, one camera each (``parallel=True`` is not used: numba's default threading
  layer aborts the process when two Python threads enter it).
* ``error_model="numpy"``: the default zero-division check blocks vectorising any loop with a division.
* ``fastmath`` has no ``nnan`` and ``ninf``, since culling relies on comparisons with NaN being false, and no
  ``reassoc``: a kernel is optimised again inside its caller, and another order of sums would then give gradients that
  differ between a process that compiles the kernels and one that loads them from the cache.
* Unsigned indices (`U`) in the inner loops: signed ones carry a wrap-around branch.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np

from diffsplat.kernel_cache import kernel_cache

logger = logging.getLogger(__name__)

U = np.uint64
F = np.float32

OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "nsz", "arcp"}}

_HERE = Path(__file__).parent

_cache_works = True


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function with numba at its first call; the result is cached on disk where a folder is writable.

    numba looks for a cache folder when the decorator runs: ``NUMBA_CACHE_DIR``, ``__pycache__`` beside the source, the
    user's cache folder. In a read-only container none of them works and numba raises at import; then the kernel
    is compiled anew in every process, and one warning says so.
    """
    global _cache_works
    if _cache_works:
        try:
            with kernel_cache(_HERE):
                return numba.njit(cache=True, **OPTIONS)(function)
        except RuntimeError as error:
            if "no locator available" not in str(error):
                raise
            _cache_works = False
            logger.warning(
                "no writable folder for compiled kernels: every process compiles them again (about ten seconds); "
                "set NUMBA_CACHE_DIR to a writable folder to keep them"
            )
    return numba.njit(cache=False, **OPTIONS)(function)


def cache_works() -> bool:
    """Whether compiled kernels are kept on disk for the next process."""
    return _cache_works
