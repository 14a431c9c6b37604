"""Reference files: inputs, weights and outputs of the published implementation with tiny random networks.

A file is NAME.safetensors with tensors `weights/<model>/<name>`, `in/<case>/<name>`, `out/<case>/<name>` and metadata
`config` (JSON).
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from diffsplat.backbones import NoiseSchedule


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


def open_golden(path: Path, unread: dict[Path, set[str]] | None = None) -> Golden:
    """Open a reference file. `unread` keeps the outputs that nobody has taken, by file."""
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        names = {name for name in tensors if name.startswith("out/")}
        config = json.loads(file.metadata()["config"])
    return Golden(path, tensors, config, names if unread is None else unread.setdefault(path, names))


# options of the schedulers that no official base model uses
NOT_BUILT = ("trained_betas", "rescale_betas_zero_snr", "thresholding", "use_karras_sigmas", "use_dynamic_shifting")


def schedule_of(base: dict[str, Any], prediction_type: str | None = None, common_tricks: bool = True) -> NoiseSchedule:
    """The process that a base model's scheduler config describes; a missing key means the scheduler class's default.

    Without the reference's `common_tricks` the time grid is that of the scheduler's class.
    """
    unknown = {name: base[name] for name in NOT_BUILT if base.get(name)}
    assert not unknown, f"the samplers do not have {unknown}"
    train_steps = base.get("num_train_timesteps", 1000)
    prediction: Any = prediction_type or base.get("prediction_type", "epsilon")  # one of `Prediction`
    if base["_class_name"].startswith("FlowMatch"):
        return NoiseSchedule("flow", "velocity", shift=base.get("shift", 1.0), num_train_timesteps=train_steps)
    return NoiseSchedule(
        "vp",
        prediction,
        base.get("beta_schedule", "linear"),
        base.get("beta_start", 0.0001),
        base.get("beta_end", 0.02),
        ddim_final_alpha_one=base.get("set_alpha_to_one", True),
        ddim_clip_x0=base.get("clip_sample", True),
        num_train_timesteps=train_steps,
        timestep_spacing="trailing" if common_tricks else "linspace",
    )
