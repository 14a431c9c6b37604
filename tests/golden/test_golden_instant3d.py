"""The blob that Instant3D's initialisation starts from."""

import torch

from diffsplat.sampling.blob_start import blob_views


def test_blob(golden, assert_close):
    file = golden("build_gaussians")
    for case in file.cases:
        given, out = file.case_in(case), file.out(case)
        views = blob_views(int(given["H"]) // 2, float(given["std"]), float(given["bg"]))
        views = 2 * views - 1  # the file holds what the image VAE is fed
        assert_close(views, out["views"], f"{case} views")
        sheet = torch.cat([torch.cat(tuple(views[k : k + 2]), dim=-1) for k in (0, 2)], dim=-2)
        assert_close(sheet[None], out["full"], f"{case} sheet")
