"""The multi-view UNet with the reference's weights, loaded strictly by their official names."""

import torch
from diffusers import UNet2DConditionModel

from diffsplat.multiview import DenoiserStep, TextContext, set_multiview_attention, stock_unet_config


def test_unet(golden, assert_close):
    file = golden("unet_sd_text")
    views = file.config["num_views"]
    unet = UNet2DConditionModel(**stock_unet_config(file.config["unet"])).eval().requires_grad_(False)
    set_multiview_attention(unet, views)
    unet.load_state_dict(file.weights("unet"))  # strict
    context, step = TextContext(unet), DenoiserStep(unet, views)
    for case in file.cases:
        given, expected = file.case_in(case), file.out(case)["sample"]
        text = given["encoder_hidden_states"]  # repeated per view
        assert_close(unet(given["sample"], given["timestep"], text).sample, expected, f"{case}: text per view")
        per_object = text[::views]
        assert torch.equal(per_object.repeat_interleave(views, dim=0), text)
        assert_close(unet(given["sample"], given["timestep"], per_object).sample, expected, f"{case}: text per object")
        rows = given["sample"].unflatten(0, (-1, views))  # [B, V, C + 6, h, w]
        times = given["timestep"].float().expand(len(given["sample"]))[::views]  # one number, or one per view
        prediction = step(rows[:, :, :-6], rows[:, :, -6:], times, context(per_object))
        assert_close(prediction.flatten(0, 1), expected, f"{case}: packed text")
