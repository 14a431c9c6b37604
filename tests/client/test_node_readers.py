"""Our files as splat-transform, spz-loader and gltf-validator of npm read them, and splat-transform's as we do."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from diffsplat_client import SplatCloud, read_splats, write_splats
from diffsplat_client.formats import FORMATS
from diffsplat_client.formats.axes import OPENGL, THREEDGS, from_frame
from diffsplat_client.viewer import covariances

from tests.client.node_readers import installed, read_csv, run_script, splat_transform
from tests.client.test_foreign_readers import assert_same, linear
from tests.splat_clouds import LOSSES, Loss, largest_loss, make_cloud


@pytest.fixture(scope="module")
def node() -> Path:
    return installed()


def columns(table: dict[str, np.ndarray], *names: str) -> np.ndarray:
    return np.stack([table[name] for name in names], axis=1)


@pytest.mark.parametrize("name", ["ply", "ply_compat", "splat", "spz", "spz4", "sog"])
def test_splat_transform_reads(node: Path, tmp_path: Path, name: str) -> None:
    """Every number of every splat, in the axes of the file."""
    cloud, path = make_cloud(300), tmp_path / FORMATS[name].file_name
    write_splats(path, cloud, format=name)
    splat_transform(node, path, tmp_path / "out.csv")
    table = read_csv(tmp_path / "out.csv")
    seen = linear(
        columns(table, "x", "y", "z"),
        columns(table, *(f"f_dc_{i}" for i in range(3))),
        table["opacity"],
        columns(table, *(f"scale_{i}" for i in range(3))),
        columns(table, *(f"rot_{i}" for i in range(4))),
    )
    assert_same(seen, cloud, name)


@pytest.mark.parametrize("name", ["spz", "spz4"])
def test_the_frame_that_splat_transform_takes_spz_for(node: Path, tmp_path: Path, name: str) -> None:
    """docs/formats.md: against the specification it takes .spz for 3DGS axes, so that ours is upside down there."""
    one = make_cloud(1)
    write_splats(tmp_path / "a.spz", one, format=name)
    splat_transform(node, tmp_path / "a.spz", tmp_path / "a.ply")
    np.testing.assert_allclose(read_splats(tmp_path / "a.ply").positions, one.positions * [1, -1, -1], atol=2e-4)


@pytest.mark.parametrize("name", ["splats.compressed.ply", "splats.spz", "splats.sog", "splats.glb"])
def test_what_splat_transform_writes_is_read(node: Path, tmp_path: Path, name: str) -> None:
    """From our .ply. Its .glb is upright too, and looks away: its world is half a turn around y from ours."""
    cloud = make_cloud(300)
    write_splats(tmp_path / "in.ply", cloud)
    splat_transform(node, tmp_path / "in.ply", tmp_path / name)
    seen = read_splats(tmp_path / name, THREEDGS if name.endswith("spz") else "")
    if name.endswith("glb"):
        w, x, y, z = seen.quats_wxyz.T
        turned = np.stack((-y, z, w, -x), axis=1)
        seen = SplatCloud(seen.positions * [-1, 1, -1], seen.rgb, seen.opacity, seen.scales, turned)
    loss = largest_loss(cloud, seen)
    most = Loss(position=2e-3, rgb=1 / 255, opacity=1.01 / 255, log_scale=0.04, rotation_deg=2)
    assert all(changed <= allowed for changed, allowed in zip(loss, most, strict=True)), loss


@pytest.mark.parametrize(("axes", "frame"), [("RUB", OPENGL), ("RDF", THREEDGS)])
def test_spz_loader_reads_version_3(node: Path, tmp_path: Path, axes: str, frame: str) -> None:
    """The library of Niantic as web pages use it, in the axes asked for; it knows in which ones files are.

    0.3.1 does not know version 4, hence our default.
    """
    cloud = make_cloud(300)
    write_splats(tmp_path / "a.spz", cloud)
    found = run_script(node, "read_spz.mjs", tmp_path / "a.spz", axes)
    found = {name: np.array(values) for name, values in found.items()}
    seen = SplatCloud(
        positions=found["positions"].reshape(-1, 3),
        rgb=found["colors"].reshape(-1, 3),
        opacity=found["alphas"],
        scales=found["scales"].reshape(-1, 3),
        quats_wxyz=found["rotations"].reshape(-1, 4)[:, [3, 0, 1, 2]],
    )
    turned = from_frame(seen, frame)  # by other quaternions of the same ellipsoids: it turns their axes too
    assert_same(dataclasses.replace(turned, quats_wxyz=cloud.quats_wxyz), cloud, "spz")
    largest = (cloud.scales.max(axis=1) ** 2)[:, None, None]
    assert (np.abs(covariances(turned) - covariances(cloud)) < 0.08 * largest).all()


@pytest.mark.parametrize("count", [0, 1, 300])
def test_gltf_validator_finds_nothing_wrong(node: Path, tmp_path: Path, count: int) -> None:
    """Beside what it does not know: it is older than the extension, and so refuses the names of its attributes."""
    write_splats(tmp_path / "a.glb", make_cloud(count))
    report = run_script(node, "validate_gltf.mjs", tmp_path / "a.glb")
    unknown = {("UNSUPPORTED_EXTENSION", "/extensionsUsed/0")} | {
        ("MESH_PRIMITIVE_INVALID_ATTRIBUTE", f"/meshes/0/primitives/0/attributes/KHR_gaussian_splatting:{name}")
        for name in ("ROTATION", "SCALE", "OPACITY", "SH_DEGREE_0_COEF_0")
    }
    issues = {(issue["code"], issue.get("pointer")) for issue in report["issues"]["messages"]}
    assert issues == (unknown if count else set())
    assert report["info"]["totalVertexCount"] == count


def test_frames_of_the_registry_are_those_of_the_readers() -> None:
    """What the tests above show for each format."""
    assert {name: format.frame for name, format in FORMATS.items()} == {
        **dict.fromkeys(("ply", "splat", "sog"), THREEDGS),
        **dict.fromkeys(("ply_compat", "spz", "spz4", "glb", "usdz"), OPENGL),
    }
    assert LOSSES.keys() == FORMATS.keys()


@pytest.mark.parametrize(("required", "outcome"), [("", pytest.skip.Exception), ("1", pytest.fail.Exception)])
def test_without_node_the_reason_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, required: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("DIFFSPLAT_REQUIRE_NODE", required)
    with pytest.raises(outcome, match="node is not on this machine"):
        installed()


def test_without_a_registry_the_reason_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, node: Path) -> None:
    """And nothing is left that would pass for an installation."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm"))
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    monkeypatch.setenv("DIFFSPLAT_REQUIRE_NODE", "")
    with pytest.raises(pytest.skip.Exception, match="npm cannot install"):
        installed()
    assert not list((tmp_path / "diffsplat").glob("node-readers-*[0-9a-f]"))
