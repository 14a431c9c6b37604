"""Fixtures that the tests of several stages share."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.official import write_base_model


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`base_model(name)`: the folder of a tiny base model in the official layout, written once; not to be changed."""
    written: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in written:
            written[name] = write_base_model(tmp_path_factory.mktemp("base_models") / name, name)
        return written[name]

    return folder
