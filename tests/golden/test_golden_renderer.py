"""Everything up to the rasterizer's inputs, and the maps made of its outputs, equal the reference's."""

import torch

from diffsplat.backbones import SplatGeometry
from diffsplat.geometry.cameras import Cameras, pixel_intrinsics, world_to_camera
from diffsplat.geometry.gaussians import grid_to_gaussians
from diffsplat.splats.render import coordinate_map, normal_map


def test_renderer(golden, assert_close):
    file = golden("renderer")
    options = {**file.config["opt_defaults"], **file.config["opt"]}
    geometry = SplatGeometry(scale_min=options["scale_min"], scale_max=options["scale_max"])
    near, far = options["znear"], options["zfar"]
    for case, settings in file.config["cases"].items():
        given, expected = file.case_in(case), file.out(case)
        depth = given.get("depth", torch.zeros_like(given["opacity"]))  # unused where positions are given
        channels = (given["rgb"], given["scale"], given["rotation"], given["opacity"], depth)
        gaussians = grid_to_gaussians(
            torch.cat(channels, dim=2),
            Cameras(given["input_C2W"], given["input_fxfycxcy"]),
            geometry,
            settings["opacity_threshold"],
            positions=given.get("xyz"),
            offsets=given.get("offset"),
            normalized=settings.get("input_normalized", True),
        )
        assert_close(gaussians.means, expected["arg_means3D"], f"{case}/means3D")
        assert_close(gaussians.rgbs, expected["arg_colors"], f"{case}/colors")
        assert_close(gaussians.opacities[..., None], expected["arg_opacities"], f"{case}/opacities")
        assert_close(gaussians.scales, expected["arg_scales"], f"{case}/scales")
        assert_close(gaussians.quats_wxyz, expected["arg_rotations"], f"{case}/rotations")

        # The reference hands cameras over as OpenGL-style row-vector matrices; ours are viewmats and K in pixels.
        height, width = expected["set_image_hw"][0, 0].tolist()
        viewmats = world_to_camera(given["C2W"])
        assert_close(viewmats.mT, expected["set_viewmatrix"], f"{case}/viewmatrix")
        k = pixel_intrinsics(given["fxfycxcy"], height, width)
        assert_close(width / (2 * k[..., 0, 0]), expected["set_tanfovx"], f"{case}/tanfovx")
        assert_close(height / (2 * k[..., 1, 1]), expected["set_tanfovy"], f"{case}/tanfovy")
        projection = torch.zeros_like(viewmats)
        projection[..., 0, :3] = 2 * k[..., 0, :] / width
        projection[..., 1, :3] = 2 * k[..., 1, :] / height
        projection[..., :2, 2] -= 1
        projection[..., 2, 2], projection[..., 2, 3] = far / (far - near), -far * near / (far - near)
        projection[..., 3, 2] = 1
        assert_close((projection @ viewmats).mT, expected["set_projmatrix"], f"{case}/projmatrix")
        assert_close(given["C2W"][..., :3, 3], expected["set_campos"], f"{case}/campos")
        assert (expected["set_scale_modifier_kernel_size"][..., 1] == geometry.eps2d).all()

        cameras = Cameras(given["C2W"], given["fxfycxcy"])
        coord = coordinate_map(given["raster_depth"], given["raster_alpha"], cameras, geometry.unproject_pixel_rule)
        assert_close(coord, expected["coord"], f"{case}/coord")
        normal = normal_map(given["raster_normal"], given["raster_alpha"], given["C2W"])
        assert_close(normal, expected["normal"], f"{case}/normal")
