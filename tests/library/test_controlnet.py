"""ControlNet: equal to the stock model, hints encoded once per request, rows with and without control side by side."""

from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from diffsplat.backbones import PICO, SD15, image_conditioned
from diffsplat.denoisers.control_inputs import control_scales, residual_shapes
from diffsplat.denoisers.controlnet import (
    ControlledDenoiserStep,
    ControlStep,
    HintEncoder,
    build_controlnet,
    controlnet_config,
    pack_residuals,
    unpack_residuals,
)
from diffsplat.denoisers.graph_inputs import size_numbers
from diffsplat.denoisers.shared_weights import AddedEmbedding
from diffsplat.denoisers.unet import DenoiserStep, TextContext, set_multiview_attention

VIEWS, SIZE, TEXT, POOLED = 4, 6, 12, 10  # an odd size after one level
SD: dict[str, Any] = {
    "in_channels": 10,
    "out_channels": 4,
    "sample_size": SIZE,
    "block_out_channels": [8, 8, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "cross_attention_dim": TEXT,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}
SDXL = {
    **SD,
    "transformer_layers_per_block": [1, 2, 1],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": POOLED + 6 * 8,
}
every_network = pytest.mark.parametrize("config", [SD, SDXL], ids=["sd", "sdxl"])


def networks(config: dict[str, Any] = SD) -> tuple[UNet2DConditionModel, ControlNetModel]:
    """Random weights throughout: the layers that start at zero would hide every mistake."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**config).eval()
    controlnet = ControlNetModel(**controlnet_config(config, (4, 4, 8, 8))).eval()
    for network in (unet, controlnet):
        set_multiview_attention(network, VIEWS)
    for layer in (*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block):
        nn.init.normal_(layer.weight, std=0.3)
    nn.init.normal_(controlnet.controlnet_cond_embedding.conv_out.weight, std=0.3)
    return unet, controlnet


class Inputs:
    """Of R rows."""

    def __init__(self, rows: int, tokens: int = 5, seed: int = 1) -> None:
        g = torch.Generator().manual_seed(seed)
        self.latents = torch.randn(rows, VIEWS, 4, SIZE, SIZE, generator=g)
        self.plucker = torch.randn(rows, VIEWS, 6, SIZE, SIZE, generator=g)
        self.times = torch.rand(rows, generator=g) * 999
        self.text = torch.randn(rows, tokens, TEXT, generator=g)
        self.pooled = torch.randn(rows, POOLED, generator=g)
        self.hint = torch.rand(rows, 3, 8 * SIZE, 8 * SIZE, generator=g)
        self.sizes = size_numbers(rows, 256)

    def of_network(self, network: Any) -> tuple[Tensor, ...]:
        return self.latents, self.plucker, self.times, TextContext(network)(self.text)

    def added(self, network: Any) -> tuple[Tensor, ...]:
        return (AddedEmbedding(network)(self.pooled, self.sizes),) if network.config.addition_embed_type else ()

    def of_control(self, controlnet: ControlNetModel, scales: Tensor) -> tuple[Tensor, ...]:
        hints = HintEncoder(controlnet, VIEWS)(self.hint)
        scales = scales.expand(len(self.latents), -1)
        return (*self.of_network(controlnet), hints, scales, *self.added(controlnet))


def stock_residuals(controlnet: ControlNetModel, inputs: Inputs, scale: float, guess_mode: bool) -> Tensor:
    """The stock call as the reference makes it: hints of all views encoded, everything repeated per view."""
    sample = torch.cat([inputs.latents, inputs.plucker], dim=2).flatten(0, 1)
    hints = torch.cat(
        [inputs.hint[:, None], inputs.hint.new_ones(len(inputs.hint), VIEWS - 1, *inputs.hint.shape[1:])], 1
    )
    text, times, pooled, sizes = (
        tensor.repeat_interleave(VIEWS, dim=0) for tensor in (inputs.text, inputs.times, inputs.pooled, inputs.sizes)
    )
    down, mid = controlnet(
        sample,
        times,
        text,
        hints.flatten(0, 1),
        conditioning_scale=scale,
        guess_mode=guess_mode,
        added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes},
        return_dict=False,
    )
    return pack_residuals([*down, mid], VIEWS)


def assert_near(actual: Tensor, expected: Tensor, bound: float = 1e-5) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= bound * expected.abs().max()


@every_network
@pytest.mark.parametrize("guess_mode", [False, True])
@torch.no_grad()
def test_step_equals_the_stock_call(config, guess_mode):
    _, controlnet = networks(config)
    inputs, step = Inputs(3), ControlStep(controlnet, VIEWS)
    scales = control_scales(step.residuals, 0.7, guess_mode)
    assert_near(step(*inputs.of_control(controlnet, scales)), stock_residuals(controlnet, inputs, 0.7, guess_mode))


@torch.no_grad()
def test_hints_are_encoded_once_per_request():
    """One image more than there are objects, before the first step; the reference encodes all views in every step."""
    _, controlnet = networks()
    inputs, steps = Inputs(2), 3
    images = []
    controlnet.controlnet_cond_embedding.register_forward_hook(lambda _, args, out: images.append(len(args[0])))
    step = ControlStep(controlnet, VIEWS)
    given = inputs.of_control(controlnet, control_scales(step.residuals, 1.0, False))
    for _ in range(steps):
        step(*given)
    assert images == [2 + 1]
    images.clear()
    with FlopCounterMode(display=False) as whole:
        stock_residuals(controlnet, inputs, 1.0, False)
    assert images == [2 * VIEWS]
    with FlopCounterMode(display=False) as per_step:
        step(*given)
    with FlopCounterMode(display=False) as hint_encoder:
        controlnet.controlnet_cond_embedding(inputs.hint.repeat(VIEWS, 1, 1, 1))
    text = sum(2 * layer.weight.numel() for layer in TextContext(controlnet).layers) * 2 * VIEWS * 5
    gone = whole.get_total_flops() - per_step.get_total_flops()
    assert gone == hint_encoder.get_total_flops() + text
    assert hint_encoder.get_total_flops() > 0


@every_network
@torch.no_grad()
def test_rows_with_and_without_control_share_a_batch(config):
    """Zero residuals are no control at all, and neighbours leave no trace beyond round-off."""
    unet, controlnet = networks(config)
    inputs = Inputs(3)
    control, controlled = ControlStep(controlnet, VIEWS), ControlledDenoiserStep(unet, VIEWS)
    assert controlled.extra_inputs == (*DenoiserStep(unet, VIEWS).extra_inputs, "residuals")
    residuals = control(*inputs.of_control(controlnet, control_scales(control.residuals, 1.0, False)))
    residuals[1] = 0
    given = (*inputs.of_network(unet), *inputs.added(unet), residuals)
    batched = controlled(*given)
    for r in range(3):
        assert_near(batched[r : r + 1], controlled(*(tensor[r : r + 1] for tensor in given)))
    free = DenoiserStep(unet, VIEWS)(*given[:-1])
    assert_near(batched[1], free[1])
    assert (batched[0] - free[0]).abs().max() > 1e-3


@torch.no_grad()
def test_each_row_has_its_own_scales():
    _, controlnet = networks()
    inputs, step = Inputs(2), ControlStep(controlnet, VIEWS)
    scales = torch.stack([control_scales(step.residuals, 0.5, False), control_scales(step.residuals, 1.0, True)])
    residuals = step(*inputs.of_control(controlnet, scales))
    assert_near(residuals[:1], stock_residuals(controlnet, inputs, 0.5, False)[:1])
    assert_near(residuals[1:], stock_residuals(controlnet, inputs, 1.0, True)[1:])


def test_guess_mode_scales_rise_tenfold():
    scales = control_scales(13, 2.0, True)
    assert scales[0] == pytest.approx(0.2) and scales[-1] == 2.0
    assert torch.allclose(scales[1:] / scales[:-1], torch.tensor(10 ** (1 / 12)))
    assert torch.equal(control_scales(13, 2.0, False), torch.full((13,), 2.0))


@every_network
def test_gradients_reach_every_weight(config):
    unet, controlnet = networks(config)
    inputs = Inputs(2)
    unet.requires_grad_(False)
    control, controlled = ControlStep(controlnet, VIEWS), ControlledDenoiserStep(unet, VIEWS)
    residuals = control(*inputs.of_control(controlnet, control_scales(control.residuals, 1.0, False)))
    controlled(*inputs.of_network(unet), *inputs.added(unet), residuals).square().mean().backward()
    missing = [name for name, parameter in controlnet.named_parameters() if parameter.grad is None]
    assert not missing


def test_residual_shapes_and_packing():
    shapes = residual_shapes(SD, SIZE, SIZE)
    assert shapes == [(8, 6, 6), (8, 6, 6), (8, 3, 3), (8, 3, 3), (8, 2, 2), (16, 2, 2), (16, 2, 2)]
    residuals = [torch.randn(2 * VIEWS, *shape) for shape in shapes]
    packed = pack_residuals(residuals, VIEWS)
    for before, after in zip(residuals, unpack_residuals(packed, shapes, VIEWS), strict=True):
        assert torch.equal(before, after)
    assert torch.equal(pack_residuals([residual[:VIEWS] for residual in residuals], VIEWS), packed[:1])


def test_build_controlnet():
    """As the stock class makes it from the UNet; silent until trained."""
    torch.manual_seed(0)
    controlnet = build_controlnet(PICO)
    unet = UNet2DConditionModel(**PICO.denoiser)
    stock = ControlNetModel.from_unet(unet)
    for name, value in stock.config.items():
        if not name.startswith("_"):
            ours = controlnet.config[name]
            assert (list(ours) if isinstance(value, tuple) else ours) == (
                list(value) if isinstance(value, tuple) else value
            ), name
    assert not any(layer.weight.any() for layer in controlnet.controlnet_down_blocks)
    with pytest.raises(ValueError, match="backbone 'sd15_image': a ControlNet needs a UNet without a condition view"):
        build_controlnet(image_conditioned(SD15))
    with pytest.raises(ValueError, match="in_channels = 11: a ControlNet has no condition view"):
        image = UNet2DConditionModel(**{**SD, "in_channels": 11})
        set_multiview_attention(image, VIEWS + 1)
        ControlledDenoiserStep(image, VIEWS)
    with pytest.raises(ValueError, match="num_views = 3"):
        ControlStep(controlnet, 3)


@every_network
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@torch.no_grad()
def test_onnx_graphs_take_any_number_of_rows_and_tokens(config, tmp_path: Path):
    unet, controlnet = (network.requires_grad_(False) for network in networks(config))
    hint_encoder = HintEncoder(controlnet, VIEWS)
    control, controlled = ControlStep(controlnet, VIEWS), ControlledDenoiserStep(unet, VIEWS)
    common = ["latents", "plucker", "timesteps", "context"]

    def feeds(rows: int, tokens: int) -> dict[str, dict[str, Tensor]]:
        inputs = Inputs(rows, tokens)
        of_control = inputs.of_control(controlnet, control_scales(control.residuals, 0.7, True))
        of_unet = (*inputs.of_network(unet), *inputs.added(unet), control(*of_control))
        return {
            "hints": {"hint": inputs.hint},
            "control": dict(zip([*common, "hints", "scales", *control.extra_inputs], of_control, strict=True)),
            "controlled": dict(zip([*common, *controlled.extra_inputs], of_unet, strict=True)),
        }

    modules = {"hints": hint_encoder, "control": control, "controlled": controlled}
    graphs = {}
    for name, example in feeds(2, 5).items():
        axes = {tensor: {0: "rows", **({1: "tokens"} if tensor == "context" else {})} for tensor in example}
        path = str(tmp_path / f"{name}.onnx")
        torch.onnx.export(
            modules[name],
            tuple(example.values()),
            path,
            dynamo=False,
            input_names=list(example),
            dynamic_axes=axes,
        )
        graphs[name] = onnxruntime.InferenceSession(path)
    for rows, tokens in ((1, 5), (3, 9)):
        for name, given in feeds(rows, tokens).items():
            result = graphs[name].run(None, {tensor: value.numpy() for tensor, value in given.items()})[0]
            assert_near(torch.from_numpy(result), modules[name](*given.values()))
