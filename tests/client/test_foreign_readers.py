"""Files as other programs read them: gsply and plyfile."""

from pathlib import Path

import gsply
import numpy as np
import plyfile
import pytest
from diffsplat_client import SplatCloud
from diffsplat_client.formats import FORMATS
from diffsplat_client.formats.axes import OPENGL, to_frame
from diffsplat_client.formats.ply import COLUMNS, SH_C0

from tests.splat_clouds import LOSSES, largest_loss, make_cloud


def linear(
    positions: np.ndarray, dc: np.ndarray, logit: np.ndarray, log_scales: np.ndarray, quats: np.ndarray
) -> SplatCloud:
    """What 3DGS tools hold in memory."""
    opacity = 1 / (1 + np.exp(-logit.astype(float)))
    unit = quats / np.linalg.norm(quats, axis=1, keepdims=True)
    return SplatCloud(positions, 0.5 + SH_C0 * dc, opacity, np.exp(log_scales), unit)


def assert_same(seen: SplatCloud, cloud: SplatCloud, name: str) -> None:
    """What another program sees in a file of this format, whose axes no reader turns."""
    loss = largest_loss(to_frame(cloud, FORMATS[name].frame), seen)
    allowed = LOSSES[name]._replace(opacity=max(LOSSES[name].opacity, 2e-6))
    if name == "splat":  # some take 127.5 for 0 in rotations, others 128
        allowed = allowed._replace(rotation_deg=2)
    assert all(changed <= most for changed, most in zip(loss, allowed, strict=True)), loss


@pytest.mark.parametrize("name", ["ply", "spz", "spz4"])
def test_gsply(tmp_path: Path, name: str) -> None:
    cloud, format = make_cloud(500), FORMATS[name]
    path = tmp_path / format.file_name
    path.write_bytes(format.write(cloud))
    data = gsply.plyread(path) if format.extension == ".ply" else gsply.read_spz(path)
    assert_same(linear(data.means, data.sh0, data.opacities.reshape(-1), data.scales, data.quats), cloud, name)


@pytest.mark.parametrize("name", ["ply", "ply_compat"])
def test_plyfile(tmp_path: Path, name: str) -> None:
    cloud = make_cloud(100)
    path = tmp_path / "a.ply"
    path.write_bytes(FORMATS[name].write(cloud))
    vertex = plyfile.PlyData.read(path)["vertex"]
    x, y, z, r, g, b, logit, *rest = (np.asarray(vertex[column]) for column in COLUMNS)
    stack = np.stack(rest, axis=1)
    seen = linear(np.stack((x, y, z), axis=1), np.stack((r, g, b), axis=1), logit, stack[:, :3], stack[:, 3:])
    assert_same(seen, cloud, name)


@pytest.mark.parametrize("version", [3, 4])
def test_spz_of_gsply(tmp_path: Path, version: int) -> None:
    """Read by us: what we take from it is what it holds, in axes that we are told are ours."""
    cloud = make_cloud(200)
    logit = np.log(cloud.opacity / (1 - cloud.opacity))
    data = gsply.GSData(
        cloud.positions, np.log(cloud.scales), cloud.quats_wxyz, logit, (cloud.rgb - 0.5) / SH_C0, np.zeros((200, 3, 3))
    )
    gsply.write_spz(tmp_path / "a.spz", data, version=version)
    again = FORMATS["spz"].read((tmp_path / "a.spz").read_bytes(), OPENGL)
    assert_same(again, cloud, "spz")
