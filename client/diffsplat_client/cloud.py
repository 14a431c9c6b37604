"""SplatCloud: the Gaussians of one object, in numpy."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from diffsplat_client.contract import GAUSSIAN_COLUMNS, GAUSSIAN_WIDTH

_WIDTHS = {"positions": 3, "rgb": 3, "opacity": None, "scales": 3, "quats_wxyz": 4}  # field -> columns, None: a vector

VISIBLE_OPACITY = 1 / 255  # rasterizers skip alphas below it, so that a splat below it changes no pixel


class Bounds(NamedTuple):
    """The box around the splats' centres, world units."""

    low: np.ndarray  # [3]
    high: np.ndarray  # [3]


@dataclass(frozen=True, eq=False)
class SplatCloud:
    """N Gaussian splats: float32, linear quantities.

    World: right-handed, x right, y up, z towards the viewer of azimuth 0. Colours are nominally in [0, 1] but may
    lie outside. The quaternion (w, x, y, z) rotates a splat with standard deviations `scales` along x, y and z.
    """

    positions: np.ndarray  # [N, 3] world units
    rgb: np.ndarray  # [N, 3]
    opacity: np.ndarray  # [N] in [0, 1]
    scales: np.ndarray  # [N, 3] standard deviations, world units
    quats_wxyz: np.ndarray  # [N, 4]

    def __post_init__(self) -> None:
        """Convert every field to float32; ValueError if shapes do not match."""
        for name, width in _WIDTHS.items():
            array = np.asarray(getattr(self, name), np.float32)
            expected = (len(self.positions),) if width is None else (len(self.positions), width)
            if array.shape != expected:
                raise ValueError(f"{name} has shape {list(array.shape)}: must be {list(expected)}")
            object.__setattr__(self, name, array)

    @classmethod
    def from_array(cls, array: np.ndarray) -> "SplatCloud":
        """From an array [N, 14] with the columns `contract.GAUSSIAN_COLUMNS`; the fields are views of it."""
        if array.ndim != 2 or array.shape[1] != GAUSSIAN_WIDTH:
            raise ValueError(f"splats have shape {list(array.shape)}: must be [N, {GAUSSIAN_WIDTH}]")
        columns = {name: array[:, where] for name, where in GAUSSIAN_COLUMNS.items()}
        return cls(columns["xyz"], columns["rgb"], columns["opacity"][:, 0], columns["scale"], columns["quat_wxyz"])

    def to_array(self) -> np.ndarray:
        """Inverse of `from_array`, float32 [N, 14]."""
        return np.concatenate((self.positions, self.rgb, self.opacity[:, None], self.scales, self.quats_wxyz), axis=1)

    def __len__(self) -> int:
        """Count the splats."""
        return len(self.positions)

    def __getitem__(self, index: slice | np.ndarray) -> "SplatCloud":
        """Pick the splats of a slice, a mask [N] or indices."""
        return SplatCloud(*(getattr(self, name)[index] for name in _WIDTHS))

    def threshold(self, opacity: float) -> "SplatCloud":
        """The splats strictly more opaque than `opacity`; the cloud itself if those are all."""
        keep = self.opacity > opacity
        return self if keep.all() else self[keep]

    def bounds(self) -> Bounds:
        """The box around all centres; ValueError for an empty cloud."""
        if not len(self):
            raise ValueError("an empty cloud has no bounds")
        return Bounds(self.positions.min(axis=0), self.positions.max(axis=0))
