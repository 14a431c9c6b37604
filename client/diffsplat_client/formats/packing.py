"""What compact formats share: numbers in bytes, rotations of unit length, and checks before anything is packed."""

import numpy as np

from diffsplat_client.cloud import SplatCloud

MAX_SPLATS = 10_000_000  # of a compressed file, whose size says little about how much it unpacks to; as the spz library
_PLACES = np.array([[i for i in range(4) if i != largest] for largest in range(4)])  # of the three other components


def unit_bytes(values: np.ndarray) -> np.ndarray:
    """Values in [0, 1] rounded to 256 levels; others are clipped."""
    return np.rint(np.clip(values, 0, 1) * np.float32(255)).astype(np.uint8)


def check_packable(cloud: SplatCloud) -> None:
    """ValueError names the first number that is not finite, and the first quaternion without a length."""
    for name in ("positions", "rgb", "opacity", "scales", "quats_wxyz"):
        values = getattr(cloud, name)
        if not np.isfinite(values).all():
            place = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
            raise ValueError(f"{name}{list(place)} = {values[place]:g}: must be finite")
    if len(zero := np.flatnonzero(~cloud.quats_wxyz.any(axis=1))):
        raise ValueError(f"quats_wxyz[{zero[0]}] = 0: must have a length")


def unit_quats(quats: np.ndarray) -> np.ndarray:
    """Quaternions [N, 4] scaled to unit length; those of length 0 stay as they are."""
    length = np.sqrt(np.einsum("ij,ij->i", quats, quats))[:, None]
    return quats / np.where(length > 0, length, 1)


def split_largest(quats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit quaternions [N, 4] without their largest component.

    Returns:
        The place of the largest component [N], and the three others [N, 3] in their order, of whichever of q and -q has
        a positive largest component: they are within 1 / sqrt(2) of 0.
    """
    sizes = np.abs(quats)
    largest = np.where(sizes[:, 1] > sizes[:, 0], 1, 0)
    for place in (2, 3):
        largest[sizes[:, place] > sizes[np.arange(len(quats)), largest]] = place
    rows = np.arange(len(quats))
    sign = np.where(quats[rows, largest] < 0, np.float32(-1), np.float32(1))
    return largest, quats[rows[:, None], _PLACES[largest]] * sign[:, None]


def join_largest(largest: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Inverse of `split_largest`: unit quaternions [N, 4]; the largest component follows from the others."""
    rows = np.arange(len(largest))
    quats = np.empty((len(largest), 4), others.dtype)
    quats[rows[:, None], _PLACES[largest]] = others
    quats[rows, largest] = np.sqrt(np.clip(1 - np.einsum("ij,ij->i", others, others), 0, None))
    return quats
