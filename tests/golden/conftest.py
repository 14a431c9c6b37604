"""The reference files of `files.py` for the tests of this folder.

By default the tests read `data/` beside this file. `pytest tests/golden --golden-dir DIR` runs the same tests on
another folder of such files: nothing here knows a shape, a case name or an option that the file does not tell.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from diffsplat.backbones import NoiseSchedule
from tests.golden.files import Golden, find_part, open_golden, schedule_of

HERE = Path(__file__).parent
UNREAD = pytest.StashKey[dict[Path, set[str]]]()  # file -> its reference outputs that no test has taken yet
PARTIAL = pytest.StashKey[bool]()  # some tests of this folder were left out of this run
RELATIVE_TOLERANCE = 1e-4  # of the largest reference value; two runs of the reference itself differ by up to 1.5e-5


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden-dir", type=Path, help="folder of reference files (default: tests/golden/data)")


def golden_dir(config: pytest.Config) -> Path:
    # a run from the root loads this file too late for its option to be parsed: then the default holds
    folder = config.getoption("golden_dir", default=None) or HERE / "data"
    if not any(folder.glob("*.safetensors")):
        raise pytest.UsageError(f"--golden-dir {folder}: holds no .safetensors files")
    return folder


@pytest.fixture(scope="session")
def golden(request: pytest.FixtureRequest) -> Callable[[str], Golden]:
    """Open the reference file of a part, or with `or_default` that of the default folder."""
    folder, unread = golden_dir(request.config), request.config.stash[UNREAD]

    def load(part: str, or_default: bool = False) -> Golden:
        path = find_part(folder, part) or (find_part(HERE / "data", part) if or_default else None)
        if path is None:
            assert folder != HERE / "data", f"{part}.safetensors is missing"
            pytest.skip(f"the folder has no file of part {part}")
        return open_golden(path, unread)

    return load


@pytest.fixture(scope="session")
def unread_outputs(request: pytest.FixtureRequest) -> dict[Path, set[str]]:
    """For each file opened so far the reference outputs that no test has taken."""
    if request.config.stash.get(PARTIAL, False):
        pytest.skip("only a run of all golden tests shows which files they read")
    return request.config.stash[UNREAD]


@pytest.fixture(scope="session")
def assert_close() -> Callable[..., None]:
    """`assert_close(actual, reference, name)`: floats to 1e-4 of the largest reference value, all else exactly."""

    def check(actual: Tensor, reference: Tensor, name: str = "tensor", tolerance: float = RELATIVE_TOLERANCE) -> None:
        actual = actual.detach()
        assert actual.shape == reference.shape, f"{name}: {actual.shape}, reference {reference.shape}"
        if not reference.is_floating_point():
            wrong = int((actual != reference).sum())
            assert wrong == 0, f"{name}: {wrong} of {reference.numel()} {reference.dtype} values differ"
            return
        error = (actual.double() - reference.double()).abs().max().item() if reference.numel() else 0.0
        bound = tolerance * (reference.double().abs().max().item() if reference.numel() else 0.0)
        # written so that a NaN fails
        assert error <= bound, f"{name}: error {error:.3g}, allowed {bound:.3g} = {tolerance:g} of the largest value"

    return check


@pytest.fixture(scope="session")
def noise_schedule() -> Callable[..., NoiseSchedule]:
    """`noise_schedule(config, prediction_type)`: see `schedule_of`."""
    return schedule_of


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Note that tests were left out of this run."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.config.stash[PARTIAL] = True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run the coverage test after all others, which fill what it looks at."""
    config.stash[UNREAD] = {}
    run = {item.path for item in items}
    if not run.issuperset(HERE.glob("test_golden_*.py")):
        config.stash[PARTIAL] = True
    items.sort(key=lambda item: item.path == HERE / "test_golden_coverage.py")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`golden_path` runs a test once per reference file in the folder."""
    if "golden_path" in metafunc.fixturenames:
        paths = sorted(golden_dir(metafunc.config).glob("*.safetensors"))
        metafunc.parametrize("golden_path", paths, ids=[path.stem for path in paths])
