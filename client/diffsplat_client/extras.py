"""Packages that an installation may lack."""

import importlib
from types import ModuleType


def require(module: str, extra: str, what: str) -> ModuleType:
    """Import a module that comes with an extra of this distribution.

    Raises:
        ModuleNotFoundError: it, or one that it imports, is not installed; the message says what for, and how to
            install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{what} needs the module {error.name}: pip install 'diffsplat-client[{extra}]'", name=error.name
        ) from None
