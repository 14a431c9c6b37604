"""Conditions of the multi-view UNet beside text: a clean view in front (image models), SDXL's added embedding."""

from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from diffsplat.denoisers.graph_inputs import size_numbers
from diffsplat.denoisers.shared_weights import AddedEmbedding
from diffsplat.denoisers.unet import DenoiserStep, TextContext, set_multiview_attention

VIEWS, SIZE, TEXT, POOLED = 4, 8, 12, 10
SD: dict[str, Any] = {
    "in_channels": 10,
    "out_channels": 4,
    "sample_size": SIZE,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "cross_attention_dim": TEXT,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
}
SDXL = {
    **SD,
    "attention_head_dim": [1, 2],
    "transformer_layers_per_block": [1, 2],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": POOLED + 6 * 8,
}
IMAGE = {"in_channels": 11}
NETWORKS = {"sd-image": {**SD, **IMAGE}, "sdxl-text": SDXL, "sdxl-image": {**SDXL, **IMAGE}}
every_network = pytest.mark.parametrize("config", NETWORKS.values(), ids=NETWORKS)


def network(config: dict[str, Any]) -> UNet2DConditionModel:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**config).eval()
    set_multiview_attention(unet, VIEWS + (config["in_channels"] == 11))
    return unet


class Inputs:
    """Of R rows: what the step takes before the context, text, and what it takes behind the context."""

    def __init__(self, rows: int, tokens: int = 5, seed: int = 1) -> None:
        g = torch.Generator().manual_seed(seed)
        self.latents = torch.randn(rows, VIEWS, 4, SIZE, SIZE, generator=g)
        self.plucker = torch.randn(rows, VIEWS, 6, SIZE, SIZE, generator=g)
        self.times = torch.rand(rows, generator=g) * 999
        self.text = torch.randn(rows, tokens, TEXT, generator=g)
        self.pooled = torch.randn(rows, POOLED, generator=g)
        self.condition = torch.randn(rows, 4, SIZE, SIZE, generator=g)
        self.sizes = size_numbers(rows, 256)

    def of_step(self, unet: UNet2DConditionModel, step: DenoiserStep) -> tuple[Tensor, ...]:
        extra = []
        if "condition_latents" in step.extra_inputs:
            extra.append(self.condition)
        if "added" in step.extra_inputs:
            extra.append(AddedEmbedding(unet)(self.pooled, self.sizes))
        return (self.latents, self.plucker, self.times, TextContext(unet)(self.text), *extra)


def plain(unet: UNet2DConditionModel, inputs: Inputs) -> Tensor:
    """The stock call as the reference makes it: everything repeated per view, nothing computed before."""
    sample = torch.cat([inputs.latents, inputs.plucker], dim=2)
    views = VIEWS
    if unet.config.in_channels == 11:
        sample = torch.cat([sample, torch.ones(*sample.shape[:2], 1, SIZE, SIZE)], dim=2)
        mask = torch.zeros(len(sample), 1, SIZE, SIZE)
        sample = torch.cat([torch.cat([inputs.condition, inputs.plucker[:, 0], mask], dim=1)[:, None], sample], dim=1)
        views += 1
    text, times, pooled, sizes = (
        tensor.repeat_interleave(views, dim=0) for tensor in (inputs.text, inputs.times, inputs.pooled, inputs.sizes)
    )
    added = {"text_embeds": pooled, "time_ids": sizes} if unet.config.addition_embed_type else None
    prediction = unet(sample.flatten(0, 1), times, text, added_cond_kwargs=added).sample
    return prediction.unflatten(0, (-1, views))[:, views - VIEWS :]


def assert_near(actual: Tensor, expected: Tensor, bound: float = 1e-5) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= bound * expected.abs().max()


@every_network
@torch.no_grad()
def test_step_equals_the_stock_call(config):
    unet, inputs = network(config), Inputs(3)
    step = DenoiserStep(unet, VIEWS)
    assert_near(step(*inputs.of_step(unet, step)), plain(unet, inputs))


@torch.no_grad()
def test_text_models_take_nothing_more():
    assert DenoiserStep(network(SD), VIEWS).extra_inputs == ()


@every_network
@torch.no_grad()
def test_batched_rows_equal_single_rows(config):
    """Rows at different times with different texts and images; the second has no image, which is zeros."""
    unet, inputs = network(config), Inputs(3)
    inputs.condition[1] = 0
    step = DenoiserStep(unet, VIEWS)
    given = inputs.of_step(unet, step)
    batched = step(*given)
    for r in range(3):
        assert_near(batched[r : r + 1], step(*(tensor[r : r + 1] for tensor in given)))


@torch.no_grad()
def test_the_condition_reaches_all_views_of_its_object_alone():
    unet, inputs = network(NETWORKS["sd-image"]), Inputs(2)
    step = DenoiserStep(unet, VIEWS)
    before = step(*inputs.of_step(unet, step))
    inputs.condition[0] += 1
    change = (step(*inputs.of_step(unet, step)) - before).abs().amax(dim=(2, 3, 4))  # [R, V]
    assert (change[0] > 1e-5).all() and (change[1] == 0).all()


@every_network
def test_gradients_reach_every_weight(config):
    unet, inputs = network(config).train(), Inputs(2)
    step = DenoiserStep(unet, VIEWS)
    step(*inputs.of_step(unet, step)).square().mean().backward()
    ours = {name: parameter.grad.clone() for name, parameter in unet.named_parameters()}
    unet.zero_grad()
    plain(unet, inputs).square().mean().backward()
    for name, parameter in unet.named_parameters():
        assert (ours[name] - parameter.grad).abs().max() <= 1e-4 * max(1e-4, parameter.grad.abs().max()), name


@torch.no_grad()
def test_added_embedding_is_computed_once_per_request():
    """Its layers run once however many steps follow, and their products are gone from a step."""
    unet, inputs, steps = network(SDXL), Inputs(2), 3
    step = DenoiserStep(unet, VIEWS)
    calls = []
    handle = unet.add_embedding.register_forward_hook(lambda *_: calls.append(1))
    given = inputs.of_step(unet, step)
    for _ in range(steps):
        step(*given)
    assert len(calls) == 1
    handle.remove()
    with FlopCounterMode(display=False) as all_of_it:
        plain(unet, inputs)
    with FlopCounterMode(display=False) as per_step:
        step(*given)
    hidden, rows = 4 * SD["block_out_channels"][0], 2
    embedding = 2 * rows * VIEWS * hidden * (SDXL["projection_class_embeddings_input_dim"] + hidden)
    keys_values = sum(2 * layer.weight.numel() for layer in TextContext(unet).layers) * rows * VIEWS * 5
    assert all_of_it.get_total_flops() - per_step.get_total_flops() == embedding + keys_values


@torch.no_grad()
def test_the_network_itself_is_left_as_it_was():
    """The step's view shares every weight and changes nothing: state dict, config and stock call stay."""
    unet, inputs = network(SDXL), Inputs(1)
    names, before = list(unet.state_dict()), plain(unet, inputs)
    step = DenoiserStep(unet, VIEWS)
    assert list(unet.state_dict()) == names and unet.config.addition_embed_type == "text_time"
    assert torch.equal(plain(unet, inputs), before)
    own = {id(parameter) for parameter in unet.parameters()}
    assert all(id(parameter) in own for parameter in step.parameters())
    unet.conv_in.weight.mul_(2)  # as loading or training would
    assert_near(step(*inputs.of_step(unet, step)), plain(unet, inputs))


def test_wrong_networks_are_refused():
    with pytest.raises(ValueError, match="in_channels = 12: must be 10 .text. or 11 .image."):
        DenoiserStep(network({**SD, "in_channels": 12}), VIEWS)
    with pytest.raises(ValueError, match="num_views = 5 and a condition view"):
        DenoiserStep(network(NETWORKS["sd-image"]), VIEWS + 1)
    with pytest.raises(ValueError, match="addition_embed_type is null"):
        AddedEmbedding(network(SD))


@every_network
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@torch.no_grad()
def test_onnx_graph_takes_any_number_of_rows_and_tokens(config, tmp_path: Path):
    unet = network(config).requires_grad_(False)
    step = DenoiserStep(unet, VIEWS)
    names = ["latents", "plucker", "timesteps", "context", *step.extra_inputs]
    axes = {name: {0: "rows"} for name in names}
    axes["context"][1] = "tokens"
    path = str(tmp_path / "step.onnx")
    example = Inputs(2).of_step(unet, step)
    torch.onnx.export(step, example, path, dynamo=False, input_names=names, dynamic_axes=axes)
    graph = onnxruntime.InferenceSession(path)
    assert [value.name for value in graph.get_inputs()] == names
    for rows, tokens in ((1, 5), (3, 9)):
        given = Inputs(rows, tokens).of_step(unet, step)
        feeds = {name: tensor.numpy() for name, tensor in zip(names, given, strict=True)}
        assert_near(torch.from_numpy(graph.run(None, feeds)[0]), step(*given))
