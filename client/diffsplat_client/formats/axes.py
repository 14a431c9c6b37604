"""World axes of files, and the rotation between ours and those of 3D Gaussian splatting.

    opengl  x right, y up, z towards the viewer: ours, glTF's, and that of .spz, which calls it right, up, back
    3dgs    x right, y down, z away from the viewer: of the original 3DGS code and the tools that read its .ply

The two differ by half a turn around x.
"""

import dataclasses

import numpy as np

from diffsplat_client.cloud import SplatCloud

OPENGL = "opengl"
THREEDGS = "3dgs"
FRAMES = (OPENGL, THREEDGS)
FRAME_CHOICES = ("", OPENGL)  # of a request; "" is the format's own


def to_frame(cloud: SplatCloud, frame: str) -> SplatCloud:
    """A cloud of our world in the axes of `frame`; the cloud itself for `opengl`. ValueError for another name."""
    if check_frame(frame) == OPENGL:
        return cloud
    w, x, y, z = cloud.quats_wxyz.T  # i * q, with i for half a turn around x
    return _turned(cloud, np.stack((-x, w, -z, y), axis=1))


def from_frame(cloud: SplatCloud, frame: str) -> SplatCloud:
    """Inverse of `to_frame`, to the last bit."""
    if check_frame(frame) == OPENGL:
        return cloud
    w, x, y, z = cloud.quats_wxyz.T  # -i * q
    return _turned(cloud, np.stack((x, -w, z, -y), axis=1))


def check_frame(frame: str) -> str:
    """The frame itself; ValueError unless it is one of FRAMES."""
    if frame not in FRAMES:
        raise ValueError(f"frame = {frame!r}: must be one of {', '.join(FRAMES)}")
    return frame


def _turned(cloud: SplatCloud, quats_wxyz: np.ndarray) -> SplatCloud:
    positions = cloud.positions * np.array([1, -1, -1], np.float32)
    return dataclasses.replace(cloud, positions=positions, quats_wxyz=quats_wxyz)
