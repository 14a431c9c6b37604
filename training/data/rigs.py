"""Camera rigs that are not known beforehand: which cameras stand on rings."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.data.views import Ring, ViewLayout

_SAME_ELEVATION_DEG = 1.5
_EVEN_DEG = 3.0  # a ring's steps may differ by so much


class Rig(NamedTuple):
    """Cameras in the order of a layout."""

    layout: ViewLayout
    order: tuple[int, ...]  # camera of every view of the layout


def find_rig(camera_to_world_zup: NDArray[np.float64], num_input_views: int) -> Rig:
    """Sort cameras [N, 4, 4] into rings of equal elevation and equal azimuth steps; the rest follows.

    A ring's number of views is a multiple of `num_input_views`, so that samples can start at each of them.
    """
    x, y, z = camera_to_world_zup[:, :3, 3].T
    elevations = np.degrees(np.arctan2(z, np.hypot(x, y)))
    azimuths = np.degrees(np.arctan2(x, -y)) % 360.0
    by_elevation = np.argsort(elevations, kind="stable")
    breaks = np.flatnonzero(np.diff(elevations[by_elevation]) > _SAME_ELEVATION_DEG) + 1
    rings: list[Ring] = []
    order: list[int] = []
    for group in np.split(by_elevation, breaks):
        ring = group[np.argsort(azimuths[group], kind="stable")]
        steps = np.diff(azimuths[ring], append=azimuths[ring[0]] + 360.0)
        if len(ring) % num_input_views == 0 and np.abs(steps - 360.0 / len(ring)).max() <= _EVEN_DEG:
            low, high = float(elevations[ring].min()), float(elevations[ring].max())
            rings.append(Ring(len(order), len(ring), (low, high), float(len(ring))))
            order += ring.tolist()
    rest = [camera for camera in range(len(elevations)) if camera not in set(order)]
    layout = ViewLayout(tuple(rings), top=None, bottom=None, duplicate_of=(), others=len(rest))
    return Rig(layout, (*order, *rest))
