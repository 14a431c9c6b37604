"""The multi-view UNets with the reference's weights, loaded strictly by their official names."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from diffsplat.denoisers.shared_weights import AddedEmbedding, share_weights_for_step
from diffsplat.denoisers.unet import DenoiserStep, TextContext, set_multiview_attention
from diffsplat.denoisers.view_inputs import stock_config


@pytest.mark.parametrize("part", ["unet_sd_text", "unet_sd_image", "unet_sdxl"])
def test_unet(part, golden, assert_close):
    file = golden(part)
    views = file.config["num_views"]  # a condition view among them
    condition = int(file.config["unet"]["view_concat_condition"])
    unet = UNet2DConditionModel(**stock_config(file.config["unet"])).eval().requires_grad_(False)
    set_multiview_attention(unet, views)
    unet.load_state_dict(file.weights("unet"))  # strict
    context, step = TextContext(unet), DenoiserStep(unet, views - condition)
    inputs = []
    unet.conv_in.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    for case in file.cases:
        given, expected = file.case_in(case), file.out(case)["sample"]
        sample, text = given["sample"], given["encoder_hidden_states"]  # text repeated per view
        added = {name: given[name] for name in ("text_embeds", "time_ids") if name in given}

        def plain(text, sample=sample, added=added, time=given["timestep"]):
            return unet(sample, time, text, added_cond_kwargs=added or None).sample

        assert_close(plain(text), expected, f"{case}: text per view")
        per_object = text[::views]
        assert torch.equal(per_object.repeat_interleave(views, dim=0), text)
        assert_close(plain(per_object), expected, f"{case}: text per object")

        # From here on the step, which takes what every run has the same for all views. Where the file's random numbers
        # are not like that, the stock network, just compared with the file, gives the expected output.
        rows = sample.unflatten(0, (-1, views))  # [B, V, C + 6 (+ 1), h, w]
        channels = rows.shape[2] - 6 - condition
        latents, rays = rows[:, condition:, :channels], rows[:, condition:, channels : channels + 6]
        extra = []
        if condition:  # its rays are those of view 0, its mask is 0
            sample = rows.clone()
            sample[:, 0, channels:-1] = rays[:, 0]
            sample[:, :, -1] = torch.tensor([0.0] + [1.0] * (views - 1))[:, None, None]
            sample = sample.flatten(0, 1)
            expected = plain(text, sample)
            extra.append(rows[:, 0, :channels])
        if added:
            embedding = AddedEmbedding(unet)
            per_view = embedding(added["text_embeds"], added["time_ids"])
            given_added = share_weights_for_step(unet)(sample, given["timestep"], text, timestep_cond=per_view).sample
            assert_close(given_added, expected, f"{case}: added embedding given")
            once = {name: tensor[::views] for name, tensor in added.items()}
            expected = plain(
                text, added={name: tensor.repeat_interleave(views, dim=0) for name, tensor in once.items()}
            )
            extra.append(embedding(once["text_embeds"], once["time_ids"]))
        times = given["timestep"].float().expand(views * len(rows))[::views]  # one number, or one per view
        prediction = step(latents, rays, times, context(per_object), *extra)
        assert_close(inputs[-1], sample, f"{case}: network input")
        expected = expected.unflatten(0, (-1, views))[:, condition:]
        assert_close(prediction, expected, f"{case}: packed text")
