"""Multi-view attention on the stock UNet: what it joins, what it must not change, and the graphs cut out of it."""

from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from diffsplat.backbones import PICO
from diffsplat.denoisers.interface import build_denoiser
from diffsplat.denoisers.unet import (
    DenoiserStep,
    JointViewAttention,
    TextContext,
    expand_input_channels,
    set_multiview_attention,
)

VIEWS = PICO.geometry.views
# three levels and a block without attention, as in SD1.5; 2-layer blocks, so that layers of one block differ
NETWORK = {
    **PICO.denoiser,
    "block_out_channels": [8, 16, 16],
    "layers_per_block": 2,
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}


def network() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return build_denoiser(replace(PICO, denoiser=NETWORK)).eval()


def inputs(rows: int, tokens: int = 5, seed: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents [R, V, 4, 8, 8], Pluecker maps [R, V, 6, 8, 8], timesteps [R], text embeddings [R, L, 12]."""
    g = torch.Generator().manual_seed(seed)
    maps = torch.randn(rows, VIEWS, 10, 8, 8, generator=g)
    return (
        maps[:, :, :4],
        maps[:, :, 4:],
        torch.rand(rows, generator=g) * 999,
        torch.randn(rows, tokens, 12, generator=g),
    )


def plain(unet: UNet2DConditionModel, latents: Tensor, plucker: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
    """The UNet as the reference calls it: text and timesteps repeated per view."""
    sample = torch.cat([latents, plucker], dim=2).flatten(0, 1)
    repeated = text.repeat_interleave(VIEWS, dim=0)
    return unet(sample, timesteps.repeat_interleave(VIEWS), repeated).sample.unflatten(0, (-1, VIEWS))


def assert_near(actual: Tensor, expected: Tensor, bound: float = 1e-5) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= bound * expected.abs().max()


@torch.no_grad()
def test_packed_text_equals_embeddings():
    unet = network()
    latents, plucker, timesteps, text = inputs(3)
    step = DenoiserStep(unet, VIEWS)(latents, plucker, timesteps, TextContext(unet)(text))
    expected = plain(unet, latents, plucker, timesteps, text)
    assert_near(step, expected)
    once = unet(torch.cat([latents, plucker], 2).flatten(0, 1), timesteps.repeat_interleave(VIEWS), text).sample
    assert_near(once.unflatten(0, (-1, VIEWS)), expected)


@torch.no_grad()
def test_one_view_equals_the_stock_network():
    """With one view per object nothing is left of the multi-view attention: a stock UNet with its own processors."""
    stock = UNet2DConditionModel(**NETWORK).eval()
    ours = UNet2DConditionModel(**NETWORK).eval()
    set_multiview_attention(ours, 1)
    names = list(stock.state_dict())
    ours.load_state_dict(stock.state_dict())
    assert list(ours.state_dict()) == names
    sample = torch.randn(3, 10, 8, 8, generator=torch.Generator().manual_seed(0))
    text = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(1))
    times = torch.tensor([1.0, 500.0, 999.0])
    assert_near(ours(sample, times, text).sample, stock(sample, times, text).sample)


@torch.no_grad()
def test_views_see_each_other_and_objects_do_not():
    unet = network()
    latents, plucker, timesteps, text = inputs(2)
    before = plain(unet, latents, plucker, timesteps, text)
    latents = latents.clone()
    latents[0, 3] += 1.0
    change = (plain(unet, latents, plucker, timesteps, text) - before).abs().amax(dim=(2, 3, 4))  # [R, V]
    assert (change[0] > 1e-4).all() and (change[1] == 0).all()


@torch.no_grad()
def test_view_order_does_not_matter():
    """There is no view embedding: permuted views give permuted predictions."""
    unet = network()
    latents, plucker, timesteps, text = inputs(1)
    order = [2, 0, 3, 1]
    expected = plain(unet, latents, plucker, timesteps, text)[:, order]
    assert_near(plain(unet, latents[:, order], plucker[:, order], timesteps, text), expected)


@torch.no_grad()
def test_batched_rows_equal_single_rows():
    """Rows at different timesteps, with different texts; the neighbours leave no trace beyond round-off."""
    unet = network()
    latents, plucker, timesteps, text = inputs(4)
    step, context = DenoiserStep(unet, VIEWS), TextContext(unet)(text)
    batched = step(latents, plucker, timesteps, context)
    for r in range(4):
        row = slice(r, r + 1)
        assert_near(batched[row], step(latents[row], plucker[row], timesteps[row], context[row]))


def test_gradients_reach_every_weight():
    unet = network().train()
    latents, plucker, timesteps, text = inputs(2)
    text.requires_grad_()
    DenoiserStep(unet, VIEWS)(latents, plucker, timesteps, TextContext(unet)(text)).square().mean().backward()
    packed = {name: parameter.grad for name, parameter in unet.named_parameters()}
    assert all(gradient is not None for gradient in packed.values())
    text_gradient = text.grad.clone()
    text.grad = None
    unet.zero_grad()
    plain(unet, latents, plucker, timesteps, text).square().mean().backward()
    assert_near(text_gradient, text.grad, 1e-4)
    for name, parameter in unet.named_parameters():
        assert (packed[name] - parameter.grad).abs().max() <= 1e-4 * max(1e-4, parameter.grad.abs().max()), name


def test_every_self_attention_is_joint():
    processors = network().attn_processors
    joint = {name for name, processor in processors.items() if isinstance(processor, JointViewAttention)}
    assert joint == {name for name in processors if ".attn1." in name} and joint


def test_wrong_number_of_views_is_refused():
    with pytest.raises(ValueError, match="num_views = 3"):
        DenoiserStep(network(), 3)
    with pytest.raises(ValueError, match="num_views = 4"):
        DenoiserStep(UNet2DConditionModel(**NETWORK), 4)


@torch.no_grad()
def test_expanded_input_starts_as_the_base_network():
    base = UNet2DConditionModel(**{**NETWORK, "in_channels": 4})
    wide = network()
    wide.load_state_dict(expand_input_channels(base.state_dict(), 10))
    set_multiview_attention(base, VIEWS)
    latents, plucker, timesteps, text = inputs(1)
    expected = base(latents.flatten(0, 1), timesteps.repeat_interleave(VIEWS), text).sample
    assert_near(plain(wide, latents, plucker, timesteps, text).flatten(0, 1), expected)
    with pytest.raises(ValueError, match="in_channels = 3"):
        expand_input_channels(base.state_dict(), 3)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@torch.no_grad()
def test_onnx_graphs_take_any_number_of_rows_and_tokens(tmp_path: Path):
    unet = network().requires_grad_(False)
    context_module, step_module = TextContext(unet), DenoiserStep(unet, VIEWS)
    latents, plucker, timesteps, text = inputs(2)
    context_path, step_path = str(tmp_path / "context.onnx"), str(tmp_path / "step.onnx")
    rows, rows_and_tokens = {0: "rows"}, {0: "rows", 1: "tokens"}
    torch.onnx.export(
        context_module,
        (text,),
        context_path,
        dynamo=False,
        input_names=["text"],
        dynamic_axes={"text": rows_and_tokens},
    )
    names = ["latents", "plucker", "timesteps", "context"]
    axes = dict(zip(names, [rows, rows, rows, rows_and_tokens], strict=True))
    example = (latents, plucker, timesteps, context_module(text))
    torch.onnx.export(step_module, example, step_path, dynamo=False, input_names=names, dynamic_axes=axes)
    context_graph, step_graph = onnxruntime.InferenceSession(context_path), onnxruntime.InferenceSession(step_path)
    for count, tokens in ((1, 5), (3, 9)):
        *maps, text = inputs(count, tokens)
        context = context_graph.run(None, {"text": text.numpy()})[0]
        assert_near(torch.from_numpy(context), context_module(text))
        feeds = {name: tensor.numpy() for name, tensor in zip(names, maps, strict=False)} | {"context": context}
        prediction = torch.from_numpy(step_graph.run(None, feeds)[0])
        assert_near(prediction, step_module(*maps, context_module(text)))
