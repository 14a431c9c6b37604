"""An official checkpoint of the smallest SD1.5, as the hub has it; every test gets a copy that it may damage."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from diffsplat.bundle import Bundle
from export.importing.importer import ImportOptions
from tests.families import write_family_bundle
from tests.official import write_official


@pytest.fixture(scope="session")
def direct(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_family_bundle(tmp_path_factory.mktemp("direct") / "bundle", "sd15")


@pytest.fixture(scope="session")
def template(direct: Bundle, tmp_path_factory: pytest.TempPathFactory) -> ImportOptions:
    return write_official(direct, tmp_path_factory.mktemp("template"), sharded=True)


@pytest.fixture
def options(template: ImportOptions, tmp_path: Path) -> ImportOptions:
    """A checkpoint that a test may damage."""
    for folder in ("out", "base"):
        shutil.copytree(Path(template.source).parent / folder, tmp_path / folder)
    return dataclasses.replace(
        template, source=str(tmp_path / "out"), base=str(tmp_path / "base"), out=tmp_path / "bundle"
    )
