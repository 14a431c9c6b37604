"""Preparing photos: blending over white and resizing, background removal and centring."""

import torch

from diffsplat.images.background import centre_object, fit_longer_side
from diffsplat.images.decode_file import DecodedImage
from diffsplat.images.prepare import on_white


def test_blend_and_resize(golden, assert_close):
    file = golden("image_preprocess")
    for case in file.cases:
        pixels = file.case_in(case)["image_hwc_01"].numpy()  # [H, W, 3 or 4] in 0 .. 1
        image = DecodedImage(pixels[..., :3], pixels[..., 3] if pixels.shape[2] == 4 else None)
        prepared = on_white(image, file.config["input_res"], "IMAGE")
        assert_close(prepared.rgb[None, None], file.out(case)["image_bvchw"], case)


def test_centre(golden, assert_close):
    """Every byte; the reference's remover was the identity."""
    file = golden("rembg_center")
    for case in file.cases:
        options = file.config["cases"][case]
        pixels = fit_longer_side(file.case_in(case)["image_bgra"].numpy(), options["size"])
        if options["center"]:
            pixels = centre_object(pixels, options["size"], options["border_ratio"])
        assert_close(torch.from_numpy(pixels), file.out(case)["out_bgra"], case)
