"""The procedural generator against closed-form truth: surfaces, normals, depth, silhouettes, captions."""

import numpy as np
import pytest
import torch

from diffsplat.geometry.cameras import DIFFSPLAT_FOCAL
from training.data.camera_chain import Y_UP_FROM_Z_UP, relative_orbit_cameras
from training.data.procedural.captions import all_captions, caption_words, draw_caption
from training.data.procedural.grammar import SIZE_WORDS
from training.data.procedural.object_words import ObjectWords
from training.data.procedural.palette import COLOURS
from training.data.procedural.render import render_views
from training.data.procedural.shapes import SPHERE, Primitive
from training.data.procedural.synthetic import (
    SHAPES,
    SyntheticConfig,
    SyntheticObject,
    layout_cameras,
    synthetic_object,
)
from training.data.record import decode_record, unpack_views
from training.data.sample import build_sample
from training.data.views import GOBJAVERSE_LAYOUT

VIEWS = (3, 9, 15, 21, 25, 26, 28, 33)  # both rings, top and bottom


def object_of(shape: str) -> SyntheticObject:
    return synthetic_object(7, 2, SyntheticConfig(shapes=(shape,)))


def surface_distance_and_normal(primitive: Primitive, shape: str, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Residual of the implicit surface (in world units) and its outward normal, z-up world, [N], [N, 3]."""
    p = primitive.to_unit(points)
    radius = np.hypot(p[:, 0], p[:, 1])
    side = np.stack([p[:, 0], p[:, 1], np.zeros(len(p))], -1)
    top = np.tile([0.0, 0.0, 1.0], (len(p), 1))
    if shape == "sphere":
        fields, gradients = [np.linalg.norm(p, axis=1) - 1], [p]
    elif shape == "cube":
        fields = [sign * p[:, k] - 1 for k in range(3) for sign in (1, -1)]
        gradients = [np.tile(sign * np.eye(3)[k], (len(p), 1)) for k in range(3) for sign in (1, -1)]
    elif shape == "cylinder":
        fields, gradients = [radius - 1, p[:, 2] - 1, -1 - p[:, 2]], [side, top, -top]
    else:
        slope = side / radius[:, None] + 0.5 * top
        fields, gradients = [radius - 0.5 * (1 - p[:, 2]), -1 - p[:, 2]], [slope, -top]
    active = np.argmax(fields, axis=0)
    residual = np.max(fields, axis=0) * min(primitive.scale)
    gradient = np.stack(gradients)[active, np.arange(len(p))] / np.array(primitive.scale) @ primitive.rotation().T
    return residual, gradient / np.linalg.norm(gradient, axis=1, keepdims=True)


@pytest.mark.parametrize("shape", SHAPES)
def test_coords_lie_on_the_surface_and_normals_match(shape: str):
    made = object_of(shape)
    views = made.render(VIEWS, 48)
    sample = build_sample(views, made.caption, made.uid, "pixel_centers")
    cameras = relative_orbit_cameras(views.camera_to_world_zup)
    inside = sample.alphas[:, 0] == 1.0  # [V, H, W]
    assert inside.flatten(1).sum(1).min() > 100, "every view shows the object"

    to_record = (cameras.normal_rotation.T.double().numpy()).T @ Y_UP_FROM_Z_UP  # row vectors: sample world -> z-up
    xyz = (2 * sample.coords - 1).permute(0, 2, 3, 1)[inside].double().numpy() / cameras.world_scale @ to_record
    normals = (2 * sample.normals - 1).permute(0, 2, 3, 1)[inside].double().numpy() @ to_record
    residual, truth = surface_distance_and_normal(made.primitives[0], shape, xyz)
    assert np.abs(residual).max() < 2e-6
    assert np.sum(normals * truth, axis=1).min() > 0.9999
    assert np.abs(xyz).max() <= 0.5


def test_the_legacy_pixel_rule_is_the_published_one():
    """Corner-aligned unprojection misses the sphere by a fraction of a percent; pixel centres do not."""
    made = object_of("sphere")
    views = made.render(VIEWS, 128)
    errors = {}
    for rule in ("legacy", "pixel_centers"):
        sample = build_sample(views, "", "", rule)
        radius = (2 * sample.coords - 1).norm(dim=1)[sample.alphas[:, 0] == 1.0]
        truth = made.primitives[0].scale[0] * relative_orbit_cameras(views.camera_to_world_zup).world_scale
        errors[rule] = float((radius / truth - 1).abs().mean())
    assert errors["pixel_centers"] < 1e-6
    assert 1e-3 < errors["legacy"] < 5e-3


def test_depth_is_planar():
    """Points of a sphere, projected by hand along the optical axis."""
    distance, radius, side = 1.4, 0.3, 33
    ball = Primitive(SPHERE, (radius,) * 3, 0.0, (0.0, 0.0, 0.0), (1.0, 0.0, 0.0))
    camera = layout_cameras(GOBJAVERSE_LAYOUT, distance, np.random.default_rng(1))[:1]
    depth = render_views([ball], camera, side).depths[0]
    assert depth[16, 16] == pytest.approx(distance - radius, abs=1e-6)
    u = (np.arange(side) + 0.5) / side - 0.5
    direction = np.stack([*np.meshgrid(u, u), np.full((side, side), DIFFSPLAT_FOCAL)], -1)
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    along = direction[..., 2] * distance
    ray_length = along - np.sqrt(np.maximum(along**2 - distance**2 + radius**2, 0))
    hit = along**2 > distance**2 - radius**2
    np.testing.assert_allclose(depth[hit], (ray_length * direction[..., 2])[hit], atol=1e-6)


def test_silhouettes_have_the_right_area_and_stand_in_the_middle():
    made = object_of("sphere")
    alpha = made.render(VIEWS, 64).rgba[..., 3]
    distance = np.linalg.norm(made.camera_to_world_zup[0, :3, 3])
    radius = made.primitives[0].scale[0]
    area = np.pi * (64 * DIFFSPLAT_FOCAL) ** 2 * radius**2 / (distance**2 - radius**2)
    np.testing.assert_allclose(alpha.sum((1, 2)), area, rtol=3e-3)
    centre = (alpha.sum(1) @ np.arange(64)) / alpha.sum((1, 2))
    np.testing.assert_allclose(centre, 31.5, atol=0.05)
    assert {round(float(value) * 9) for value in np.unique(alpha)} >= {0, 4, 5, 9}, "edges are anti-aliased"


@pytest.mark.parametrize("shape", SHAPES)
def test_objects_fit_the_frame_from_every_side(shape: str):
    """The largest instance at the smallest distance touches no border of any of the 40 views."""
    config = SyntheticConfig(shapes=(shape,), sizes=("large",), size_jitter=0.0, distance_range=(1.4, 1.4))
    for index in range(3):
        made = synthetic_object(0, index, config)
        alpha = made.render(range(40), 24).rgba[..., 3]
        border = np.concatenate([alpha[:, 0], alpha[:, -1], alpha[:, :, 0], alpha[:, :, -1]], 1)
        assert border.max() == 0.0
        assert np.abs(made.primitives[0].scale).max() <= 0.5


def test_primitives_hide_one_another():
    """Two primitives: the nearer one is seen, whatever their order."""
    red = Primitive(SPHERE, (0.2,) * 3, 0.0, (0.0, -0.25, 0.0), (1.0, 0.0, 0.0))  # towards azimuth 0
    blue = Primitive(SPHERE, (0.2,) * 3, 0.0, (0.0, 0.25, 0.0), (0.0, 0.0, 1.0))
    cameras = layout_cameras(GOBJAVERSE_LAYOUT, 1.4, np.random.default_rng(1))[[0, 12]]
    for primitives in ((red, blue), (blue, red)):
        rgb = render_views(primitives, cameras, 33).rgba[:, 16, 16]
        assert rgb[0, 0] > 0.4 and rgb[0, 2] == 0.0
        assert rgb[1, 2] > 0.4 and rgb[1, 0] == 0.0


def test_the_record_path_equals_the_direct_path():
    """Render -> record bytes -> decode agrees with the rendered numbers to the quantisation, map by map."""
    made = object_of("cone")
    record = made.record(VIEWS, 32)
    direct = build_sample(made.render(VIEWS, 32), made.caption, made.uid, "pixel_centers")
    decoded = build_sample(unpack_views(decode_record(record, VIEWS)), made.caption, made.uid, "pixel_centers")
    bounds = {"images_rgb": 1.01 / 255, "alphas": 0.51 / 255, "normals": 0.51 / 255, "coords": 0.51 / 255}
    for name, bound in bounds.items():
        assert (getattr(direct, name) - getattr(decoded, name)).abs().max() <= bound, name
    inside = direct.alphas == 1.0
    for name, bound in {"normals": 2e-5, "coords": 5e-5, "depths": 5e-5}.items():
        difference = (getattr(direct, name) - getattr(decoded, name)).abs()
        assert difference[inside.expand_as(difference)].max() <= bound, name
    torch.testing.assert_close(direct.camera_to_world, decoded.camera_to_world, rtol=0, atol=0)


def test_an_object_is_a_function_of_seed_and_index():
    first, again = synthetic_object(3, 11), synthetic_object(3, 11)
    assert first.words == again.words and first.primitives == again.primitives and first.uid == again.uid
    np.testing.assert_array_equal(first.camera_to_world_zup, again.camera_to_world_zup)
    np.testing.assert_array_equal(first.render((0,), 16).rgba, again.render((0,), 16).rgba)
    assert synthetic_object(3, 12).primitives != first.primitives
    assert synthetic_object(4, 11).primitives != first.primitives


def test_every_block_holds_every_combination_once():
    words = [synthetic_object(0, index).words for index in range(144)]
    assert len(set(words[:72])) == len(set(words[72:])) == 72 == 4 * 6 * 3
    assert words[:72] != words[72:]


def test_colour_of_the_image_is_the_colour_of_the_caption():
    """The mean foreground colour, at any shading, is nearest in direction to its own palette entry."""
    names = list(COLOURS)
    palette = np.array([COLOURS[name] for name in names])
    palette /= np.linalg.norm(palette, axis=1, keepdims=True)
    for index in range(72):
        made = synthetic_object(1, index)
        rgba = made.render((0, 12, 25, 26), 16).rgba
        for view in rgba:
            mean = (view[..., :3] * view[..., 3:]).sum((0, 1))
            assert names[int(np.argmax(palette @ (mean / np.linalg.norm(mean))))] == made.words.colour


def test_captions_tell_the_truth_and_stay_in_the_vocabulary():
    rng = np.random.default_rng(0)
    words = ObjectWords("cube", "red", "small")
    drawn = {draw_caption(words, rng) for _ in range(2000)}
    assert drawn == set(all_captions(words))
    assert "a red cube" in drawn and "a small red cube" in drawn and "a cube that is red" in drawn
    vocabulary = set(caption_words(tuple(SHAPES)))
    others = set(COLOURS) - {"red"} | set(SHAPES) - {"cube"} | set(SIZE_WORDS["large"])
    for caption in drawn:
        told = set(caption.split())
        assert {"red", "cube"} <= told <= vocabulary
        assert not told & others
        assert "  " not in caption and "{" not in caption and caption == caption.strip()


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="shapes = .'teapot'"):
        SyntheticConfig(shapes=("teapot",))
    with pytest.raises(ValueError, match="colours = "):
        SyntheticConfig(colours=())
