"""Reference files: inputs, weights and outputs of the published implementation with tiny random networks.

By default the tests read `data/` beside this file. `pytest tests/golden --golden-dir DIR` runs the same tests on
another folder of such files: nothing here knows a shape, a case name or an option that the file does not tell.

A file is NAME.safetensors with tensors `weights/<model>/<name>`, `in/<case>/<name>`, `out/<case>/<name>` and metadata
`config` (JSON).
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from diffsplat.backbones import NoiseSchedule

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


def find_part(folder: Path, part: str) -> Path | None:
    """PART.safetensors, or else the first file whose metadata name that part."""
    path = folder / f"{part}.safetensors"
    if path.is_file():
        return path
    return next((path for path in sorted(folder.glob("*.safetensors")) if part_of(path) == part), None)


def part_of(path: Path) -> str:
    """The part that a file belongs to; files without that entry are called by their part."""
    with safe_open(path, "pt") as file:
        return file.metadata().get("part", path.stem)


class Outputs(Mapping[str, Tensor]):
    """Reference outputs by name. Whatever a test takes leaves `unread`; looking whether a name is there does not."""

    def __init__(self, tensors: dict[str, Tensor], prefix: str, unread: set[str]) -> None:
        self._tensors, self._prefix, self._unread = tensors, prefix, unread

    def __getitem__(self, name: str) -> Tensor:
        self._unread.discard(self._prefix + name)
        return self._tensors[name]

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


@dataclass(frozen=True)
class Golden:
    """One reference file."""

    path: Path  # other files of the same part lie beside it
    tensors: dict[str, Tensor]
    config: dict[str, Any]
    unread: set[str]  # reference outputs that no test has taken yet, shared by all who open the file

    @property
    def cases(self) -> list[str]:
        """Names under `out/`, sorted."""
        return sorted({name.split("/")[1] for name in self.tensors if name.startswith("out/")})

    def _under(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}

    def case_in(self, case: str) -> dict[str, Tensor]:
        """Inputs of one case; what it lacks comes from `in/shared/`."""
        return {**self._under("in/shared/"), **self._under(f"in/{case}/")}

    def out(self, case: str) -> Outputs:
        """Reference outputs of one case; taking one of them notes that it was read."""
        return Outputs(self._under(f"out/{case}/"), f"out/{case}/", self.unread)

    def weights(self, model: str) -> dict[str, Tensor]:
        """State dict of one model, official names."""
        return self._under(f"weights/{model}/")


@pytest.fixture(scope="session")
def golden(request: pytest.FixtureRequest) -> Callable[[str], Golden]:
    """Open the reference file of a part, or with `or_default` that of the default folder."""
    folder, unread = golden_dir(request.config), request.config.stash[UNREAD]

    def load(part: str, or_default: bool = False) -> Golden:
        path = find_part(folder, part) or (find_part(HERE / "data", part) if or_default else None)
        if path is None:
            assert folder != HERE / "data", f"{part}.safetensors is missing"
            pytest.skip(f"the folder has no file of part {part}")
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
            names = unread.setdefault(path, {name for name in tensors if name.startswith("out/")})
            return Golden(path, tensors, json.loads(file.metadata()["config"]), names)

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


# options of the schedulers that no official base model uses
NOT_BUILT = ("trained_betas", "rescale_betas_zero_snr", "thresholding", "use_karras_sigmas", "use_dynamic_shifting")


def schedule_of(base: dict[str, Any], prediction_type: str | None = None, common_tricks: bool = True) -> NoiseSchedule:
    """The process that a base model's scheduler config describes; a missing key means the scheduler class's default.

    Without the reference's `common_tricks` the time grid is that of the scheduler's class.
    """
    unknown = {name: base[name] for name in NOT_BUILT if base.get(name)}
    assert not unknown, f"the samplers do not have {unknown}"
    train_steps = base.get("num_train_timesteps", 1000)
    if base["_class_name"].startswith("FlowMatch"):
        return NoiseSchedule("flow", "velocity", shift=base.get("shift", 1.0), num_train_timesteps=train_steps)
    return NoiseSchedule(
        "vp",
        prediction_type or base.get("prediction_type", "epsilon"),
        base.get("beta_schedule", "linear"),
        base.get("beta_start", 0.0001),
        base.get("beta_end", 0.02),
        ddim_final_alpha_one=base.get("set_alpha_to_one", True),
        ddim_clip_x0=base.get("clip_sample", True),
        num_train_timesteps=train_steps,
        timestep_spacing="trailing" if common_tricks else "linspace",
    )


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


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """The reference ran on one thread; more threads would only slow such small networks down."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
