"""ControlNet and controlled UNet with the reference's weights, and what a fresh ControlNet copies from its UNet."""

import torch
from diffusers import ControlNetModel, UNet2DConditionModel

from diffsplat.denoisers.control_inputs import control_scales, residual_shapes
from diffsplat.denoisers.controlnet import (
    ControlledDenoiserStep,
    ControlStep,
    HintEncoder,
    controlnet_config,
    copy_encoder,
    unpack_residuals,
)
from diffsplat.denoisers.unet import TextContext, set_multiview_attention
from diffsplat.denoisers.view_inputs import stock_config


def test_controlnet(golden, assert_close):
    file = golden("controlnet")
    config, views = file.config, file.config["num_views"]
    net = stock_config(config["unet"])
    unet = UNet2DConditionModel(**net).eval().requires_grad_(False)
    channels = tuple(config["conditioning_embedding_out_channels"])
    controlnet = ControlNetModel(**controlnet_config(net, channels)).eval().requires_grad_(False)
    for network, name in ((unet, "unet"), (controlnet, "controlnet")):
        set_multiview_attention(network, views)
        network.load_state_dict(file.weights(name))  # strict
    given = file.case_in("forward")
    rows = given["sample"].unflatten(0, (-1, views))
    latents, rays = rows[:, :, :-6], rows[:, :, -6:]
    times = given["timestep"].float().expand(len(rows))
    text = given["encoder_hidden_states"][::views]

    hints = HintEncoder(controlnet, views)(given["hint_view0"])
    assert_close(hints.flatten(0, 1), file.out("hint_embedding")["out"], "hints")
    control, controlled = ControlStep(controlnet, views), ControlledDenoiserStep(unet, views)
    shapes = residual_shapes(net, *latents.shape[-2:])
    for case, guess_mode in (("normal", False), ("guess_mode", True)):
        expected = file.out(case)
        scales = control_scales(control.residuals, config["conditioning_scale"], guess_mode).expand(len(rows), -1)
        packed = control(latents, rays, times, TextContext(controlnet)(text), hints, scales)
        *down, mid = unpack_residuals(packed, shapes, views)
        assert len(down) == sum(name.startswith("down_") for name in expected)
        for k, residual in enumerate(down):
            assert_close(residual, expected[f"down_{k}"], f"{case} down {k}")
        assert_close(mid, expected["mid"], f"{case} mid")
        prediction = controlled(latents, rays, times, TextContext(unet)(text), packed)
        assert_close(prediction.flatten(0, 1), expected["unet_sample"], f"{case} prediction")


def test_a_new_controlnet_starts_as_a_copy(golden):
    """Input, time embedding, down and mid blocks are the UNet's; residuals and hints start at zero."""
    file = golden("controlnet")
    expected = {name: int(value) for name, value in file.out("from_unet").items()}
    unet = UNet2DConditionModel(**stock_config(file.config["unet"]))
    channels = tuple(file.config["conditioning_embedding_out_channels"])
    fresh = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=channels).state_dict()
    assert {name: tensor.shape for name, tensor in fresh.items()} == {
        name: tensor.shape for name, tensor in file.weights("controlnet").items()
    }
    ours = ControlNetModel(**controlnet_config(stock_config(file.config["unet"]), channels))
    copy_encoder(ours, unet)
    assert {name: t for name, t in fresh.items() if name in unet.state_dict()}.keys() == {
        name
        for name, tensor in ours.state_dict().items()
        if torch.equal(tensor, unet.state_dict().get(name, tensor + 1))
    }
    original = unet.state_dict()
    assert len(fresh) == expected["num_controlnet_tensors"]
    assert (
        sum(name in original and torch.equal(t, original[name]) for name, t in fresh.items())
        == (expected["num_copied_tensors"])
    )
    assert (
        sum(not t.any() for name, t in fresh.items() if name not in original) == (expected["num_zero_tensors_at_init"])
    )
