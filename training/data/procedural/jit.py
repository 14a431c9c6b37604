"""How the ray caster's functions are compiled: one decorator."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

from diffsplat.kernel_cache import kernel_cache

_HERE = Path(__file__).resolve().parent


def compiled(function: Callable[..., Any] | None = None, *, inline: bool = False) -> Any:
    """Compile at the first call and keep the result on disk; `inline` inlines the function into its callers."""
    if function is None:
        return functools.partial(compiled, inline=inline)
    with kernel_cache(_HERE):
        return numba.njit(
            cache=True, nogil=True, error_model="numpy", inline="always" if inline else "never"
        )(function)  # fmt: skip
