""".usdz as OpenUSD and tinyusdz read ours, and what the files of others may hold."""

import io
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tinyusdz
from diffsplat_client import Client, SplatCloud
from diffsplat_client.formats import FORMATS
from diffsplat_client.formats.axes import FRAMES, to_frame
from diffsplat_client.formats.ply import SH_C0
from diffsplat_client.formats.usdz import DEGREE, HARMONICS, OPACITIES, ORIENTATIONS, POSITIONS, PRIM_TYPE, SCALES
from diffsplat_client.viewer import covariances
from pxr import Usd, UsdGeom, UsdValidation, UsdVol

from tests.client.test_foreign_readers import assert_same
from tests.splat_clouds import make_cloud

USDZ = FORMATS["usdz"]


def cloud_of(values: dict[str, np.ndarray]) -> SplatCloud:
    """Of the attributes of a prim, whose quaternions are (x, y, z, w)."""
    rgb = 0.5 + SH_C0 * values[HARMONICS]
    return SplatCloud(values[POSITIONS], rgb, values[OPACITIES], values[SCALES], values[ORIENTATIONS][:, [3, 0, 1, 2]])


@pytest.mark.parametrize("count", [0, 1, 300])
def test_openusd(tmp_path: Path, count: int) -> None:
    """Its schema knows every attribute, and none of its validators finds anything."""
    cloud = make_cloud(count)
    (tmp_path / "a.usdz").write_bytes(USDZ.write(cloud))
    stage = Usd.Stage.Open(str(tmp_path / "a.usdz"))
    assert UsdGeom.GetStageUpAxis(stage) == "Y" and UsdGeom.GetStageMetersPerUnit(stage) == 1
    splats = UsdVol.ParticleField3DGaussianSplat(stage.GetDefaultPrim())
    assert splats
    names = {attribute.GetName() for attribute in splats.GetPrim().GetAuthoredAttributes()}
    assert names == {"extent", POSITIONS, ORIENTATIONS, SCALES, OPACITIES, HARMONICS, DEGREE}
    assert names < {*splats.GetPrim().GetPrimDefinition().GetPropertyNames()}
    values = {name: np.array(splats.GetPrim().GetAttribute(name).Get()) for name in names}
    assert values.pop(DEGREE) == 0
    if count:
        assert_same(cloud_of(values), cloud, "usdz")
        low, high = values["extent"]
        assert (low < cloud.positions.min(axis=0)).all() and (cloud.positions.max(axis=0) < high).all()
    validators = UsdValidation.ValidationRegistry().GetOrLoadAllValidators()
    assert len(validators) > 10
    assert [error.GetMessage() for error in UsdValidation.ValidationContext(validators).Validate(stage)] == []


@pytest.mark.parametrize("frame", FRAMES)
def test_tinyusdz(frame: str) -> None:
    """A reader of crates that shares no code with OpenUSD's."""
    cloud = make_cloud(300)
    stage = tinyusdz.load_bytes(USDZ.write(cloud, frame))
    (prim,) = tinyusdz.traverse(stage)
    assert (prim.type_name, prim.name) == (PRIM_TYPE, "splats")
    values = {name: np.asarray(prim.get_attribute(name).value) for name in prim.property_names() if name != DEGREE}
    assert_same(cloud_of(values), to_frame(cloud, frame), "usdz")


def test_members_can_be_mapped_into_memory() -> None:
    """Stored, and from a multiple of 64 bytes on, as the specification asks."""
    data = USDZ.write(make_cloud(3))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        (member,) = archive.infolist()
        assert member.compress_type == zipfile.ZIP_STORED
        content = archive.read(member)
    assert data.index(content) % 64 == 0 and content.startswith(b"PXR-USDC")


def packed(*layers: str, kind: int = zipfile.ZIP_STORED, name: str = "root.usda") -> bytes:
    """A file of text layers: the root, then `1.usda`, `2.usda`, ..."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as archive:
        for number, layer in enumerate(layers):
            archive.writestr(f"{number}.usda" if number else name, f"#usda 1.0\n{layer}")
    return file.getvalue()


PRIM = """
def ParticleField3DGaussianSplat "a" {
    uniform int radiance:sphericalHarmonicsDegree = 1
    point3h[] positionsh = [(1, 2, 3), (0.5, 0, -1)]
    quath[] orientationsh = [(0.5, 0.5, -0.5, 0.5), (1, 0, 0, 0)]
    half3[] scalesh = [(0.125, 0.25, 0.5), (1, 1, 1)]
    half[] opacitiesh = [0.25, 0.5]
    half3[] radiance:sphericalHarmonicsCoefficientsh = [
        (0, 1, -1), (9, 9, 9), (9, 9, 9), (9, 9, 9), (1, 1, 1), (9, 9, 9), (9, 9, 9), (9, 9, 9)]
}
"""


def test_scenes_of_others_are_put_together() -> None:
    """A layer with z up and in centimetres that turns, doubles and moves what it takes from another one; halves."""
    scene = """(
        upAxis = "Z"
        metersPerUnit = 0.01
    )
    def Xform "world" {
        float3 xformOp:scale = (2, 2, 2)
        float xformOp:rotateZ = 90
        double3 xformOp:translate = (0, 0, 10)
        uniform token[] xformOpOrder = ["xformOp:translate", "xformOp:rotateZ", "xformOp:scale"]
        def "splats" (references = @1.usda@</a>) {}
    }"""
    plain, seen = USDZ.read(packed(PRIM)), USDZ.read(packed(scene, PRIM))
    np.testing.assert_array_equal(plain.positions, [[1, 2, 3], [0.5, 0, -1]])
    np.testing.assert_array_equal(plain.quats_wxyz, [[0.5, 0.5, -0.5, 0.5], [1, 0, 0, 0]])
    np.testing.assert_array_equal(plain.opacity, [0.25, 0.5])
    np.testing.assert_allclose(plain.rgb, 0.5 + SH_C0 * np.array([[0, 1, -1], [1, 1, 1]]), rtol=1e-6)
    x, y, z = plain.positions.T
    turn = np.array([[0, -1, 0], [0, 0, 1], [-1, 0, 0]])  # x -> y of the stage, our -z; y -> -x; z -> our y
    np.testing.assert_allclose(seen.positions, np.stack((-2 * y, 2 * z + 10, -2 * x), axis=1) / 100, atol=1e-6)
    np.testing.assert_allclose(seen.scales, plain.scales * 0.02, rtol=1e-6)
    np.testing.assert_allclose(covariances(seen), 0.02**2 * turn @ covariances(plain) @ turn.T, atol=1e-8)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (packed(PRIM, name="readme.txt"), "the first member is 'readme.txt': must be .usd, .usda or .usdc"),
        (packed(PRIM, kind=zipfile.ZIP_DEFLATED), "'root.usda' is compressed or larger than the file"),
        (packed("def {{{"), "OpenUSD cannot open root.usda"),
        (packed('def Xform "a" {}'), "no prim of the stage is a ParticleField3DGaussianSplat"),
        (packed(PRIM.replace("half[] opacitiesh = [0.25, 0.5]", "")), "/a has no opacities"),
        (packed(PRIM.replace("[0.25, 0.5]", "[0.25]")), "/a.opacitiesh has 1 values: must have 2"),
        (packed(PRIM.replace("Degree = 1", "Degree = 2")), "Coefficientsh has 8 values: must have 18"),
        (packed(PRIM.replace("Degree = 1", "Degree = -1")), "Degree = -1: must be in 0 .. 4"),
        (
            packed(
                PRIM.replace(
                    '"a" {',
                    '"a" { float3 xformOp:scale = (1, 2, 1)\n uniform token[] xformOpOrder = ["xformOp:scale"]',
                )
            ),
            "/a stretches or mirrors the splats",
        ),
    ],
)
def test_what_is_wrong_is_named(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=f"^usdz: .*{message}"):
        USDZ.read(data)


def test_without_openusd_files_are_written_and_asked_for(fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its 200 MB are needed for reading alone: the server sends the splats beside the file."""
    data = USDZ.write(make_cloud(2))
    monkeypatch.setitem(sys.modules, "pxr", None)
    monkeypatch.delitem(sys.modules, "pxr.Usd")
    assert USDZ.write(make_cloud(2)) == data
    last = fakes.finished(**fakes.files(usdz=data))
    result = Client(transport=fakes.transport(last)).generate("x", formats=("usdz",))
    assert result.assets["usdz"] == data
    np.testing.assert_array_equal(result.cloud.to_array(), last["GAUSSIANS"])
    with pytest.raises(ModuleNotFoundError, match=r"reading .usdz needs .*pip install 'diffsplat-client\[usd\]'"):
        USDZ.read(data)
