"""Every primitive shape against its implicit equation: surface, normal, first hit, silhouette, frame; and scenes."""

from dataclasses import replace

import numpy as np
import pytest

from diffsplat.geometry.cameras import DIFFSPLAT_FOCAL
from training.data.camera_chain import Y_UP_FROM_Z_UP, relative_orbit_cameras
from training.data.procedural import shapes as ids
from training.data.procedural.hits_more import DIAMOND_PLANES, PRISM_PLANES, PYRAMID_PLANES, WEDGE_PLANES
from training.data.procedural.object_words import ObjectWords
from training.data.procedural.objects import COMPOSITES
from training.data.procedural.parts import bounds
from training.data.procedural.render import render_views
from training.data.procedural.shapes import Primitive
from training.data.procedural.solids import ALL_SHAPES
from training.data.procedural.synthetic import (
    RICH_CONFIG,
    SyntheticConfig,
    SyntheticObject,
    build_object,
    layout_cameras,
)
from training.data.sample import build_sample
from training.data.views import GOBJAVERSE_LAYOUT

VIEWS = (3, 9, 25, 26, 33)  # both rings, top and bottom
TESTED = [  # each id with the parameter that it needs
    *((shape, 0.0) for shape in (ids.SPHERE, ids.CUBE, ids.CONE, ids.CYLINDER)),
    *((shape, 0.0) for shape in (ids.PYRAMID, ids.DOME, ids.WEDGE, ids.PRISM, ids.DIAMOND)),
    *((ids.TORUS, tube) for tube in (0.1, 0.3, 0.45)),
    *((ids.CAPSULE, radius) for radius in (0.2, 0.6)),
    *((ids.TUBE, bore) for bore in (0.5, 0.9)),
    *((ids.FRUSTUM, top) for top in (0.2, 0.9)),
]
CUBE_PLANES = np.concatenate([np.hstack([sign * np.eye(3), np.ones((3, 1))]) for sign in (1, -1)])
PLANES = {
    ids.CUBE: CUBE_PLANES,
    ids.PYRAMID: PYRAMID_PLANES,
    ids.WEDGE: WEDGE_PLANES,
    ids.PRISM: PRISM_PLANES,
    ids.DIAMOND: DIAMOND_PLANES,
}


def field(part: Primitive, points: np.ndarray) -> np.ndarray:
    """Implicit function of the placed shape, negative inside, [N] (not a distance)."""
    p = part.to_unit(points)
    x, y, z = p.T
    radius, height = np.hypot(x, y), np.abs(z) - 1
    if part.shape in PLANES:
        planes = PLANES[part.shape]
        return (p @ planes[:, :3].T - planes[:, 3]).max(1)
    if part.shape == ids.SPHERE:
        return np.linalg.norm(p, axis=1) - 1
    if part.shape == ids.CONE:
        return np.maximum(radius - 0.5 * (1 - z), height)
    if part.shape == ids.CYLINDER:
        return np.maximum(radius - 1, height)
    if part.shape == ids.TORUS:
        return np.hypot(radius - (1 - part.parameter), z) - part.parameter
    if part.shape == ids.CAPSULE:
        return np.hypot(radius, np.maximum(np.abs(z) - (1 - part.parameter), 0)) - part.parameter
    if part.shape == ids.DOME:
        return np.maximum(np.linalg.norm(p, axis=1) - 1, -z)
    if part.shape == ids.TUBE:
        return np.maximum(np.maximum(radius - 1, part.parameter - radius), height)
    assert part.shape == ids.FRUSTUM
    return np.maximum(radius - (1 - 0.5 * (1 - part.parameter) * (1 + z)), height)


def gradient(part: Primitive, points: np.ndarray) -> np.ndarray:
    """Outward unit normal of the implicit function by central differences, [N, 3]."""
    step = 1e-6
    slopes = [field(part, points + step * axis) - field(part, points - step * axis) for axis in np.eye(3)]
    normal = np.stack(slopes, 1)
    return normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)


def surface_points(made: SyntheticObject, resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """Points and normals of the fully covered pixels in the object's z-up world, [N, 3] each."""
    views = made.render(VIEWS, resolution)
    sample = build_sample(views, "", "", "pixel_centers")
    cameras = relative_orbit_cameras(views.camera_to_world_zup)
    inside = sample.alphas[:, 0] == 1.0
    to_record = cameras.normal_rotation.double().numpy() @ Y_UP_FROM_Z_UP  # row vectors: sample world -> z-up
    xyz = (2 * sample.coords - 1).permute(0, 2, 3, 1)[inside].double().numpy() / cameras.world_scale @ to_record
    normals = (2 * sample.normals - 1).permute(0, 2, 3, 1)[inside].double().numpy() @ to_record
    return xyz, normals


def assert_on_surfaces(made: SyntheticObject, resolution: int) -> None:
    """Each point lies on one part at least, inside none, and has the normal of a part that it lies on."""
    xyz, normals = surface_points(made, resolution)
    assert len(xyz) > 100
    assert np.abs(xyz).max() <= 0.5
    fields = np.stack([field(part, xyz) * min(part.scale) for part in made.primitives])  # [P, N]
    assert fields.min(0).min() > -5e-6, "nothing is seen through a surface"
    assert fields.min(0).max() < 5e-6
    agreement = np.stack([np.sum(gradient(part, xyz) * normals, axis=1) for part in made.primitives])
    agreement[fields > 5e-6] = -1
    # Central differences straddle the rare pixel centre that lies on an edge.
    assert np.mean(agreement.max(0) > 0.999) > 0.995


@pytest.mark.parametrize("shape", ALL_SHAPES)
def test_coords_and_normals_of_named_shapes(shape: str):
    assert_on_surfaces(build_object(ObjectWords(shape, "red", "large", grammar="rich"), 7, 2), 40)


@pytest.mark.parametrize("noun", COMPOSITES)
def test_coords_and_normals_of_composites(noun: str):
    assert_on_surfaces(build_object(ObjectWords(noun, "", "large", grammar="rich"), 3, 1), 40)


@pytest.mark.parametrize("relation", ["on top of", "next to"])
def test_coords_and_normals_of_scenes(relation: str):
    words = ObjectWords("torus", "red", "large", "plain", "", relation, "dome", "blue", "rich")
    assert_on_surfaces(build_object(words, 3, 1), 40)


@pytest.mark.parametrize(("shape", "parameter"), TESTED)
def test_rays_stop_at_the_first_surface_and_nowhere_else(shape: int, parameter: float):
    """Tilted, unevenly scaled primitives against samples of the implicit function along each ray."""
    side, step = 32, 0.002
    rng = np.random.default_rng(shape)
    cameras = layout_cameras(GOBJAVERSE_LAYOUT, 1.4, rng)[[2, 25, 31]]
    depth_samples = np.arange(0.9, 1.9, step)
    u = ((np.arange(side) + 0.5) / side - 0.5) / DIFFSPLAT_FOCAL
    directions = np.stack([*np.meshgrid(u, u), np.ones((side, side))], -1)  # planar depth 1
    for _ in range(2):
        scale = tuple(rng.uniform(0.12, 0.28, 3).tolist())
        tilt = tuple(rng.uniform(-180, 180, 2).tolist())
        part = Primitive(shape, scale, 40.0, (0.03, -0.02, 0.04), (1.0, 0.0, 0.0), tilt, parameter)
        views = render_views([part], cameras, side)
        for view, camera in enumerate(cameras):
            rays = directions @ camera[:3, :3].T  # [H, W, 3]
            points = camera[:3, 3] + depth_samples[:, None, None, None] * rays
            values = field(part, points.reshape(-1, 3)).reshape(points.shape[:-1])
            entered = (values < 0).any(0)
            first = depth_samples[(values < 0).argmax(0)]
            alpha, depth = views.rgba[view, ..., 3], views.depths[view]
            assert alpha[entered].min() > 0, "a ray that enters the solid is never a miss"
            whole = entered & (alpha == 1.0)
            assert whole.sum() >= 8
            assert np.all(depth[whole] <= first[whole] + 1e-5)
            # Across an edge the way inside can be shorter than a step of the samples.
            assert np.mean(depth[whole] >= first[whole] - step - 1e-5) > 0.95
            grazing = (alpha == 1.0) & ~entered
            assert values.min(0)[grazing].max(initial=0.0) < 0.05
            assert alpha[values.min(0) > 0.6].max(initial=0.0) == 0.0


@pytest.mark.parametrize(("shape", "parameter"), TESTED)
def test_bounds_contain_the_shape(shape: int, parameter: float):
    """Surface points found by rendering lie in the box that `bounds` gives, and it is not loose by much."""
    part = Primitive(shape, (0.2, 0.3, 0.25), 30.0, (0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (25.0, -40.0), parameter)
    low, high = bounds([part])
    made = SyntheticObject(
        "", ObjectWords("", "", ""), (part,), layout_cameras(GOBJAVERSE_LAYOUT, 1.4, np.random.default_rng(0))
    )
    xyz, _ = surface_points(made, 32)
    assert np.all(xyz >= low - 1e-6) and np.all(xyz <= high + 1e-6)
    assert np.all(xyz.max(0) > 0.35 * high)


@pytest.mark.parametrize("noun", [*ALL_SHAPES, *COMPOSITES])
def test_everything_fits_the_frame_from_every_side(noun: str):
    """The largest instances at the smallest distance touch no border of any of the 40 views."""
    config = replace(RICH_CONFIG, size_jitter=0.0, distance_range=(1.4, 1.4))
    for index in range(2):
        made = build_object(ObjectWords(noun, "", "large", grammar="rich"), 0, index, config)
        alpha = made.render(range(40), 24).rgba[..., 3]
        border = np.concatenate([alpha[:, 0], alpha[:, -1], alpha[:, :, 0], alpha[:, :, -1]], 1)
        assert border.max() == 0.0
        assert alpha.max() == 1.0


def test_images_do_not_depend_on_what_is_out_of_sight():
    """Leaving primitives out where their box covers no pixel changes no bit: a hidden part may come and go."""
    made = build_object(ObjectWords("teddy bear", "", "large", grammar="rich"), 0, 0)
    hidden = Primitive(ids.TORUS, (0.02,) * 3, 0.0, made.primitives[0].centre, (1.0, 0.0, 0.0), parameter=0.3)
    more = render_views([*made.primitives, hidden], made.camera_to_world_zup[:2], 32)
    for kept, again in zip(made.render((0, 1), 32)[:3], more[:3], strict=True):
        np.testing.assert_array_equal(kept, again)


def test_patterns_are_painted_in_the_shapes_own_frame():
    red, blue = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)
    part = Primitive(ids.CYLINDER, (0.2, 0.2, 0.3), 0.0, (0, 0, 0), red, (0.0, 90.0), 0.0, ids.STRIPES, 3, blue)
    cameras = layout_cameras(GOBJAVERSE_LAYOUT, 1.4, np.random.default_rng(0))[:1]
    row = render_views([part], cameras, 65).rgba[0, 32]  # lying along x: bands from left to right
    seen = ["r" if pixel[0] > pixel[2] else "b" for pixel in row if pixel[3] == 1.0]
    assert "".join(np.array(seen)[np.append(True, np.array(seen)[1:] != np.array(seen)[:-1])]) == "rbr"
    assert abs(seen.count("b") / len(seen) - 1 / 3) < 0.06
    sliced = replace(part, tilt_deg=(0.0, 0.0), pattern=ids.SECTORS, bands=2)
    top = render_views([sliced], layout_cameras(GOBJAVERSE_LAYOUT, 1.4, np.random.default_rng(0))[25:26], 33).rgba[0]
    assert abs(np.mean(top[top[..., 3] == 1.0][:, 0] > 0) - 0.5) < 0.06


def test_a_rich_configuration_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="composites = .'teapot'"):
        SyntheticConfig(grammar="rich", composites=("teapot",))
    with pytest.raises(ValueError, match="grammar = 'rich'"):
        SyntheticConfig(patterns=("plain", "striped"))
    with pytest.raises(ValueError, match="kind_weights"):
        SyntheticConfig(grammar="rich", kind_weights=(0.0, 0.0, 1.0, 0.0))
    with pytest.raises(ValueError, match="shapes = .'torus'"):
        SyntheticConfig(shapes=("torus",))
