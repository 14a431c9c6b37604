"""Meshes -> views: against the analytic caster and against values that follow from geometry and materials."""

from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image
from trimesh.visual.material import PBRMaterial

from diffsplat.geometry.cameras import DIFFSPLAT_FOCAL
from tests.training.mesh_files import gradient, quad, save, write_obj
from training.data.meshes.loading import load_mesh
from training.data.meshes.rendering import (
    LAYOUT,
    RenderSettings,
    framing_cameras,
    normalised,
    render_object,
    render_packed,
)
from training.data.meshes.surface import to_srgb
from training.data.procedural.render import AMBIENT, LIGHT_YUP, render_views
from training.data.procedural.shapes import CUBE, SPHERE, Primitive
from training.data.record import PackedViews, decode_record, unpack_views, usable_views

SETTINGS = RenderSettings(resolution=48, geometry="centre")
FRONT = np.array([[1.0, 0, 0, 0], [0, 0, 1, -1.5], [0, -1, 0, 0], [0, 0, 0, 1]])  # z-up camera 1.5 before the object
FRONT_SHADE = AMBIENT + (1 - AMBIENT) * (0.5 + 0.5 * LIGHT_YUP[2] / np.linalg.norm(LIGHT_YUP))


def front(path: Path, settings: RenderSettings = SETTINGS) -> PackedViews:
    """The view from +z of the normalised object."""
    packed, cut = render_packed(normalised(load_mesh(path).surface), FRONT[None], settings)
    assert cut == 0
    return packed


def middle(image: np.ndarray) -> np.ndarray:
    """The mean of the four pixels around the centre, as floats."""
    side = image.shape[1]
    return np.asarray(image[0, side // 2 - 1 : side // 2 + 1, side // 2 - 1 : side // 2 + 1].astype(float).mean((0, 1)))


@pytest.mark.parametrize("shape", [SPHERE, CUBE])
def test_a_mesh_equals_the_analytic_shape(tmp_path: Path, shape: int) -> None:
    rgb = (0.8, 0.3, 0.1)
    mesh = trimesh.creation.icosphere(subdivisions=5) if shape == SPHERE else trimesh.creation.box((2, 2, 2))
    linear = [next(x for x in np.linspace(0, 1, 25601) if to_srgb(x) >= value) for value in rgb]
    material = PBRMaterial(baseColorFactor=[*(round(x * 255) for x in linear), 255], metallicFactor=0.0)
    mesh.visual = trimesh.visual.TextureVisuals(uv=np.zeros((len(mesh.vertices), 2)), material=material)
    assert shape == CUBE or len(mesh.vertex_normals)  # computed here, so that the file has them
    surface = normalised(load_mesh(save(tmp_path / "shape.glb", mesh)).surface)
    cameras = framing_cameras(surface, "shape", SETTINGS)[[0, 7, 16, 25, 26, 30]]
    views = unpack_views(render_packed(surface, cameras, SETTINGS)[0])
    truth = render_views([Primitive(shape, (0.5, 0.5, 0.5), 0.0, (0.0, 0.0, 0.0), rgb)], cameras, SETTINGS.resolution)
    both = (views.rgba[..., 3] == 1.0) & (truth.rgba[..., 3] == 1.0)
    assert both.mean() > 0.2
    assert np.abs(views.rgba[..., 3] - truth.rgba[..., 3]).mean() < 2e-3
    assert np.abs(views.rgba - truth.rgba)[both].max() < 0.03
    inner = both & (np.abs(np.einsum("vhwc,vhwc->vhw", views.normals, truth.normals)) > 0)
    cosine = np.einsum("vhwc,vhwc->vhw", views.normals, truth.normals)[inner]
    assert np.quantile(cosine, 0.01) > 0.999
    assert np.quantile(np.abs(views.depths - truth.depths)[both], 0.99) < 2e-3
    np.testing.assert_array_equal(views.depths[views.rgba[..., 3] == 0], 0.0)


def test_a_record_has_every_view_framed_and_consistent(tmp_path: Path) -> None:
    box = trimesh.creation.box((4.0, 2.0, 3.0))
    surface = load_mesh(save(tmp_path / "box.glb", box)).surface
    rendered = render_object(surface, "box", SETTINGS, ("a box",))
    assert rendered.faces == 12
    assert usable_views(rendered.record, LAYOUT.count) == tuple(range(40))
    assert rendered.record["txt"] == b"a box"
    for view, original in LAYOUT.duplicate_of:
        for part in (".png", "_nd.png", "_albedo.png", "_mr.png", ".json"):
            assert rendered.record[f"{view:05}{part}"] == rendered.record[f"{original:05}{part}"]
    packed = decode_record(rendered.record, range(40), {"rgb", "normal", "depth", "albedo", "metallic_roughness"})
    alpha = packed.rgba[..., 3]
    assert not alpha[:, [0, -1]].any() and not alpha[:, :, [0, -1]].any()  # nothing touches the border
    assert alpha.astype(bool).any(axis=(1, 2)).all()
    assert packed.albedo is not None and packed.metallic_roughness is not None
    assert (packed.albedo[alpha == 255] == 204).all()  # 0.8, the grey of what has no material
    assert (packed.metallic_roughness[alpha == 255] == [0, 255, 0]).all()
    # Points of every view, unprojected, lie on the box, and look along its faces' normals.
    views = unpack_views(packed)
    half = np.array([2.0, 1.0, 1.5]) / 4.0
    size = SETTINGS.resolution
    rays = (np.stack(np.meshgrid(np.arange(size), np.arange(size)), -1) + 0.5) / size - 0.5
    in_camera = np.concatenate([rays / DIFFSPLAT_FOCAL, np.ones((size, size, 1))], -1) * views.depths[..., None]
    pose = packed.camera_to_world_zup
    points = np.einsum("vij,vhwj->vhwi", pose[:, :3, :3], in_camera) + pose[:, None, None, :3, 3]
    points = np.stack([points[..., 0], points[..., 2], -points[..., 1]], -1)[alpha == 255]  # y up
    outside = np.abs(points) / half
    assert np.abs(outside.max(axis=-1) - 1.0).max() < 2e-3
    facing = np.take_along_axis(views.normals[alpha == 255], outside.argmax(-1)[:, None], 1)[:, 0]
    side = np.take_along_axis(np.sign(points), outside.argmax(-1)[:, None], 1)[:, 0]
    assert np.mean(facing * side > 0.999) > 0.97  # all but pixels on an edge


def test_cameras_step_back_from_what_does_not_fit_and_follow_the_id(tmp_path: Path) -> None:
    surface = normalised(load_mesh(save(tmp_path / "cube.glb", trimesh.creation.box())).surface)
    cameras = framing_cameras(surface, "a", SETTINGS)
    distances = np.linalg.norm(cameras[:, :3, 3], axis=1)
    assert np.ptp(distances) < 1e-5 and distances[0] > 1.9
    np.testing.assert_array_equal(cameras, framing_cameras(surface, "a", SETTINGS))
    assert not np.array_equal(cameras, framing_cameras(surface, "b", SETTINGS))
    small = surface._replace(vertices=surface.vertices * 0.3)
    assert 1.4 <= np.linalg.norm(framing_cameras(small, "a", SETTINGS)[0, :3, 3]) <= 1.5


def test_textures_are_sampled_where_their_coordinates_say(tmp_path: Path) -> None:
    path = save(tmp_path / "quad.glb", quad(PBRMaterial(baseColorTexture=gradient(), metallicFactor=0.0)))
    packed = front(path)
    assert packed.albedo is not None
    size = SETTINGS.resolution
    row, column = np.nonzero(packed.rgba[0, ..., 3] == 255)
    at = np.stack([(column + 0.5) / size - 0.5, 0.5 - (row + 0.5) / size], -1) * 1.5 / DIFFSPLAT_FOCAL + 0.5  # u, v
    inner = (np.abs(at - 0.5) < 0.48).all(-1)
    albedo = packed.albedo[0, row, column].astype(float)
    np.testing.assert_allclose(albedo[inner, :2], 255.0 * at[inner], atol=3.0)
    np.testing.assert_allclose(albedo[inner, 2], 51.0, atol=1.0)
    np.testing.assert_allclose(packed.rgba[0, row, column, :3][inner], albedo[inner] * FRONT_SHADE, atol=1.5)


def test_small_checks_of_a_large_texture_become_grey_and_not_noise(tmp_path: Path) -> None:
    checks = np.indices((512, 512)).sum(0) % 2 * 255
    image = Image.fromarray(np.repeat(checks[..., None], 3, -1).astype(np.uint8))
    packed = front(save(tmp_path / "q.glb", quad(PBRMaterial(baseColorTexture=image, metallicFactor=0.0))))
    assert packed.albedo is not None
    seen = packed.albedo[packed.rgba[..., 3] == 255]
    assert np.abs(seen.astype(float) - 127.5).max() < 4


def test_vertex_colours_count_and_ply_points_z_up(tmp_path: Path) -> None:
    corners = np.array([[-0.5, 0, -0.5], [0.5, 0, -0.5], [0.5, 0, 0.5], [-0.5, 0, 0.5]])  # stands upright in z-up
    colours = np.array([[255, 0, 0, 255], [0, 255, 0, 255], [0, 0, 255, 255], [255, 255, 255, 255]], np.uint8)
    mesh = trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], vertex_colors=colours, process=False)
    path = tmp_path / "quad.ply"
    mesh.export(path)
    packed = front(path)
    assert packed.albedo is not None
    rows, columns = np.nonzero(packed.rgba[0, ..., 3] == 255)
    top, bottom, left, right = rows.min(), rows.max(), columns.min(), columns.max()
    for at, colour in (((bottom, left), 0), ((bottom, right), 1), ((top, right), 2), ((top, left), 3)):
        assert np.abs(packed.albedo[0, at[0], at[1]].astype(int) - colours[colour, :3]).max() < 20
    np.testing.assert_allclose(unpack_views(packed).normals[0, 24, 24], [0, 0, 1], atol=1e-4)


def test_colours_of_faces_count(tmp_path: Path) -> None:
    mesh = trimesh.creation.box()
    mesh.visual.face_colors = np.array([[200, 10, 10, 255]] * 12, np.uint8)
    mesh.export(tmp_path / "box.ply")
    packed = front(tmp_path / "box.ply")
    assert packed.albedo is not None
    np.testing.assert_allclose(middle(packed.albedo), [200, 10, 10], atol=1)


def test_metal_roughness_and_emission_come_from_factors_and_textures(tmp_path: Path) -> None:
    texture = Image.fromarray(np.full((4, 4, 3), (0, 128, 64), np.uint8))
    material = PBRMaterial(
        baseColorFactor=[0, 0, 0, 255], metallicFactor=0.5, roughnessFactor=0.5, metallicRoughnessTexture=texture,
        emissiveFactor=[1.0, 0.0, 0.0],
    )  # fmt: skip
    packed = front(save(tmp_path / "quad.glb", quad(material)))
    assert packed.metallic_roughness is not None
    np.testing.assert_allclose(middle(packed.metallic_roughness), [32, 64, 0], atol=1)
    np.testing.assert_allclose(middle(packed.rgba), [255, 0, 0, 255], atol=1)


def test_a_mirror_shows_the_environment_and_not_its_normal(tmp_path: Path) -> None:
    """Seen head-on, both are the same; a polished sphere turned to its side is not."""
    ball = trimesh.creation.icosphere(subdivisions=4)
    shown = []
    for roughness in (0.0, 1.0):
        material = PBRMaterial(metallicFactor=1.0, roughnessFactor=roughness)
        ball.visual = trimesh.visual.TextureVisuals(uv=np.zeros((len(ball.vertices), 2)), material=material)
        shown.append(front(save(tmp_path / f"{roughness}.glb", ball)).rgba[0].astype(float))
    np.testing.assert_allclose(shown[0][24, 24], shown[1][24, 24], atol=6)
    assert np.abs(shown[0] - shown[1])[..., :3].max() > 40


def test_what_is_transparent_is_blended_over_what_lies_behind(tmp_path: Path) -> None:
    glass = PBRMaterial(baseColorFactor=[0, 0, 255, 102], metallicFactor=0.0, alphaMode="BLEND")  # alpha 0.4
    wall = PBRMaterial(baseColorFactor=[255, 0, 0, 255], metallicFactor=0.0)
    packed = front(save(tmp_path / "two.glb", quad(glass, 0.1), quad(wall, -0.1)))
    assert packed.albedo is not None
    np.testing.assert_allclose(middle(packed.albedo), [0.6 * 255, 0, 0.4 * 255], atol=1)
    np.testing.assert_allclose(middle(packed.rgba), [0.6 * 255 * FRONT_SHADE, 0, 0.4 * 255 * FRONT_SHADE, 255], atol=1)
    np.testing.assert_allclose(unpack_views(packed).depths[0, 24, 24], 1.6, atol=1e-3)  # of the wall: more than half

    alone = front(save(tmp_path / "one.glb", quad(glass)))
    np.testing.assert_allclose(middle(alone.rgba), [0, 0, 255 * FRONT_SHADE, 102], atol=1)
    np.testing.assert_allclose(unpack_views(alone).depths[0, 24, 24], 1.5, atol=1e-3)
    stack = [quad(PBRMaterial(baseColorFactor=[0, 0, 255, 5], alphaMode="BLEND"), 0.02 * z) for z in range(20)]
    surface = normalised(load_mesh(save(tmp_path / "stack.glb", *stack)).surface)
    assert render_packed(surface, FRONT[None], SETTINGS)[1] > 1000  # rays given up after so many surfaces


def test_masks_cut_holes(tmp_path: Path) -> None:
    pixels = np.full((64, 64, 4), 255, np.uint8)
    pixels[:, :32, 3] = 0
    material = PBRMaterial(baseColorTexture=Image.fromarray(pixels), metallicFactor=0.0, alphaMode="MASK")
    packed = front(save(tmp_path / "half.glb", quad(material)))
    alpha = packed.rgba[0, 24, :, 3]
    assert not alpha[:23].any() and (alpha[26:36] == 255).all()


def test_mtl_materials_and_their_textures(tmp_path: Path) -> None:
    plain = front(write_obj(tmp_path / "plain", "a", "Kd 0.2 0.4 0.6\nd 0.5\n"))
    np.testing.assert_allclose(
        middle(plain.rgba), [51 * FRONT_SHADE, 102 * FRONT_SHADE, 153 * FRONT_SHADE, 127], atol=1
    )
    path = write_obj(tmp_path / "textured", "b", "Kd 0.64 0.64 0.64\nmap_Kd texture.png\n", gradient())
    textured = front(path)
    assert textured.albedo is not None and load_mesh(path).notes == ()
    np.testing.assert_allclose(middle(textured.albedo), [127.5, 127.5, 51], atol=2)  # Kd does not darken it
    (tmp_path / "textured" / "texture.png").unlink()
    assert load_mesh(path).notes == ("texture.png is missing",)
    holed = write_obj(tmp_path / "holed", "c", "Kd 0.2 0.4 0.6\nmap_d texture.png\n", Image.new("L", (8, 8), 102))
    np.testing.assert_allclose(middle(front(holed).rgba)[3], 102, atol=1)
    np.testing.assert_allclose(middle(front(holed).rgba)[:3], np.array([51, 102, 153]) * FRONT_SHADE, atol=1)
    (tmp_path / "holed" / "texture.png").unlink()
    assert load_mesh(holed).notes == ("texture.png is missing",)
    noted = write_obj(tmp_path / "noted", "d", "Kd 1 1 1\nmap_bump bumps.png\n")
    assert load_mesh(noted).notes == ("bump maps are ignored",)


def test_anti_aliased_maps_are_means_and_central_ones_are_not(tmp_path: Path) -> None:
    near, far = quad(PBRMaterial()), quad(PBRMaterial(), -0.4).apply_translation([0.5, 0.0, 0.0])
    turn = trimesh.transformations.rotation_matrix(0.1, [0, 0, 1])  # so that the step crosses pixels
    steps = save(tmp_path / "steps.glb", near.apply_transform(turn), far.apply_transform(turn))
    means = unpack_views(front(steps, RenderSettings(resolution=48, samples=3))).depths
    centres = unpack_views(front(steps)).depths
    levels = np.unique(centres[centres > 0].round(2))
    assert len(levels) == 2
    assert ((means > levels[0] + 0.02) & (means < levels[1] - 0.02)).any()


@pytest.mark.parametrize(
    ("field", "value"),
    [("resolution", 4), ("samples", 2), ("distance_range", (1.5, 1.4)), ("seed", -1)],
)
def test_settings_out_of_range_are_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field} = "):
        RenderSettings(**{field: value}).check()  # type: ignore[arg-type]
