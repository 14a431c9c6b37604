"""Fixtures that the tests of several stages share."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from diffsplat.backbones import BACKBONES
from tests.families import family_spec
from tests.official import write_base_model
from tests.training.finished import FAMILY_NAMES, Parents, tiny_diffusion, write_parents
from tests.training.stored_objects import COUNT, packed_object
from training.config.diffusion import DiffusionConfig
from training.data.record import PackedViews


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`base_model(name)`: the folder of a tiny base model in the official layout, written once; not to be changed."""
    written: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in written:
            written[name] = write_base_model(tmp_path_factory.mktemp("base_models") / name, name)
        return written[name]

    return folder


@pytest.fixture(scope="module")
def packed() -> list[PackedViews]:
    """Views of the objects that tests store in every form."""
    return [packed_object(number) for number in range(COUNT)]


@pytest.fixture(scope="module")  # other rooms count what is in the table
def tiny_families() -> Iterator[None]:
    """The shrunken backbones `tiny_NAME` and `tiny_NAME_image` are in the table."""
    specs = {spec.name: spec for name in FAMILY_NAMES for spec in (family_spec(name), family_spec(f"{name}_image"))}
    with pytest.MonkeyPatch.context() as patch:
        for name, spec in specs.items():
            patch.setitem(BACKBONES, name, spec)
        yield


@pytest.fixture(scope="session")
def finished_parents(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Parents]:
    """`finished_parents(name)`: runs of GSRecon and GSVAE that a family's denoiser is trained on, written once."""
    written: dict[str, Parents] = {}

    def parents(name: str) -> Parents:
        if name not in written:
            written[name] = write_parents(tmp_path_factory.mktemp("parents") / name, family_spec(name))
        return written[name]

    return parents


@pytest.fixture(scope="module")
def diffusion_config(
    tiny_families: None, base_model: Callable[[str], Path], finished_parents: Callable[[str], Parents]
) -> Callable[..., DiffusionConfig]:
    """`diffusion_config(name, out)`: a run from the base model of `name` (`..._image`: of the image model)."""

    def config(name: str, out: Path) -> Any:
        text_name = name.removesuffix("_image")
        return tiny_diffusion(family_spec(name), finished_parents(text_name), base_model(text_name), out)

    return config
