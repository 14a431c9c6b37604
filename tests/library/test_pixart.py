"""PixArt transformers over many views: what is joined, what a step no longer computes, and the graphs cut out of it.

The yardstick is the way the reference calls its network: one batch entry per view, text and time repeated for each,
padded text with its mask, and attention over the views in a processor.
"""

from collections import Counter
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from diffusers import PixArtTransformer2DModel
from torch import Tensor, nn

from diffsplat.backbones import PIXART_SIGMA, image_conditioned
from diffsplat.denoisers.pixart import PixArtStep, TallPatchEmbed, build_network, set_tall_views
from diffsplat.denoisers.pixart_text import PixArtTextContext
from diffsplat.denoisers.unet import JointViewAttention, expand_input_channels
from diffsplat.denoisers.view_inputs import network_input, split_views, stack_views
from diffsplat.sampling.schedulers import build_sampler
from diffsplat.sampling.steps import COEFFICIENTS
from diffsplat.text.features import batch_contexts, drop_masked_tokens

MANIFESTS = Path(__file__).parents[1] / "golden" / "manifests"
VIEWS, LAYERS, WIDTH, TEXT_WIDTH, PADDED = 4, 3, 16, 12, 9
# widths that the random weights of three layers tell apart: text 12, transformer 16 = 2 heads of 8, grid 4 x 4 tokens
NETWORK = {
    **PIXART_SIGMA.denoiser,
    "num_layers": LAYERS,
    "num_attention_heads": 2,
    "attention_head_dim": WIDTH // 2,
    "cross_attention_dim": WIDTH,
    "caption_channels": TEXT_WIDTH,
    "sample_size": 8,
}
IMAGE_NETWORK = {**NETWORK, "in_channels": 11}
LENGTHS = (5, 1, 7)  # kept tokens per row


def networks(config: dict = NETWORK) -> tuple[PixArtTransformer2DModel, PixArtTransformer2DModel]:
    """Our transformer and the reference's way, with the same random weights."""
    torch.manual_seed(0)
    ours = build_network(config, VIEWS).eval()
    attended = VIEWS + (config["in_channels"] == 11)
    reference = PixArtTransformer2DModel(**config).eval()
    reference.load_state_dict(ours.state_dict())  # strict
    processors = {
        name: JointViewAttention(attended) if ".attn1." in name else processor
        for name, processor in reference.attn_processors.items()
    }
    reference.set_attn_processor(processors)
    return ours, reference


def inputs(rows: int = len(LENGTHS), seed: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Latents [R, V, 4, 8, 8], rays [R, V, 6, 8, 8], times [R], text [R, 9, 12], mask [R, 9], image [R, 4, 8, 8]."""
    g = torch.Generator().manual_seed(seed)
    maps = torch.randn(rows, VIEWS + 1, 10, 8, 8, generator=g)
    mask = torch.arange(PADDED) < torch.tensor([LENGTHS[r % len(LENGTHS)] for r in range(rows)])[:, None]
    text = torch.randn(rows, PADDED, TEXT_WIDTH, generator=g)
    times = torch.rand(rows, generator=g) * 999
    return maps[:, :VIEWS, :4], maps[:, :VIEWS, 4:], times, text, mask.long(), maps[:, VIEWS, :4]


def reference_step(
    network: PixArtTransformer2DModel, views: Tensor, times: Tensor, text: Tensor, mask: Tensor
) -> Tensor:
    """[R, W, C_in, h, w] -> [R, W, 4, h, w]."""
    count = views.shape[1]
    sample = network(
        views.flatten(0, 1),
        encoder_hidden_states=text.repeat_interleave(count, dim=0),
        timestep=times.repeat_interleave(count),
        encoder_attention_mask=mask.repeat_interleave(count, dim=0),
    ).sample
    return sample[:, :4].unflatten(0, (-1, count))


def assert_near(actual: Tensor, expected: Tensor, bound: float = 1e-5) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= bound * expected.abs().max()


@torch.no_grad()
def test_step_equals_the_reference_way():
    """Rows at different times with texts of different lengths, with their padding and without."""
    ours, reference = networks()
    latents, plucker, times, text, mask, _ = inputs()
    expected = reference_step(reference, torch.cat([latents, plucker], 2), times, text, mask)
    step, context_graph = PixArtStep(ours, VIEWS), PixArtTextContext(ours)
    assert_near(step(latents, plucker, times, context_graph(text), mask), expected)
    short = drop_masked_tokens(text, mask)
    assert short.tokens.shape[1] == max(LENGTHS)
    assert_near(step(latents, plucker, times, context_graph(short.tokens), short.kept), expected)
    every_token = torch.ones_like(mask)
    expected = reference_step(reference, torch.cat([latents, plucker], 2), times, text, every_token)
    assert_near(step(latents, plucker, times, context_graph(text)), expected)


@torch.no_grad()
def test_condition_view_equals_the_reference_way():
    ours, reference = networks(IMAGE_NETWORK)
    latents, plucker, times, text, mask, condition = inputs()
    views = network_input(latents, plucker, condition)
    assert torch.equal(views[:, 0, :4], condition) and torch.equal(views[:, 1:, :4], latents)
    assert torch.equal(views[:, 0, 4:10], plucker[:, 0]) and torch.equal(views[:, 1:, 4:10], plucker)
    assert (views[:, 0, 10] == 0).all() and (views[:, 1:, 10] == 1).all()
    expected = reference_step(reference, views, times, text, mask)[:, 1:]  # that of the condition view is thrown away
    prediction = PixArtStep(ours, VIEWS)(latents, plucker, times, PixArtTextContext(ours)(text), mask, condition)
    assert_near(prediction, expected)


@torch.no_grad()
def test_one_view_equals_the_stock_network():
    """With one view per object nothing is left of the multi-view attention: stock modules, stock processors."""
    torch.manual_seed(0)
    stock = PixArtTransformer2DModel(**NETWORK).eval()
    ours = build_network(NETWORK, 1).eval()
    assert list(ours.state_dict()) == list(stock.state_dict())
    ours.load_state_dict(stock.state_dict())
    latents, plucker, times, text, mask, _ = inputs()
    latents, plucker = latents[:, :1], plucker[:, :1]
    expected = reference_step(stock, torch.cat([latents, plucker], 2), times, text, mask)
    assert_near(PixArtStep(ours, 1)(latents, plucker, times, PixArtTextContext(ours)(text), mask), expected)


@torch.no_grad()
def test_views_see_each_other_and_objects_do_not():
    ours, _ = networks()
    latents, plucker, times, text, mask, _ = inputs(2)
    step, context = PixArtStep(ours, VIEWS), PixArtTextContext(ours)(text)
    before = step(latents, plucker, times, context, mask)
    latents = latents.clone()
    latents[0, 3] += 1.0
    change = (step(latents, plucker, times, context, mask) - before).abs().amax(dim=(2, 3, 4))  # [R, V]
    assert (change[0] > 1e-5).all() and (change[1] == 0).all()


@torch.no_grad()
def test_batched_prompts_of_different_lengths_equal_single_ones():
    ours, _ = networks(IMAGE_NETWORK)
    latents, plucker, times, text, mask, condition = inputs(4)
    step, context_graph = PixArtStep(ours, VIEWS), PixArtTextContext(ours)
    contexts = [context_graph(row[keep != 0][None])[0] for row, keep in zip(text, mask, strict=True)]
    assert [len(context) for context in contexts] == [5, 1, 7, 5]
    context, kept = batch_contexts(contexts)
    assert kept.sum(dim=1).tolist() == [5, 1, 7, 5]
    batched = step(latents, plucker, times, context, kept, condition)
    for r, alone in enumerate(contexts):
        row = slice(r, r + 1)
        single = step(latents[row], plucker[row], times[row], alone[None], None, condition[row])
        assert_near(batched[row], single)


@torch.no_grad()
def test_what_masked_tokens_hold_does_not_matter():
    ours, _ = networks()
    latents, plucker, times, text, mask, _ = inputs()
    step, context_graph = PixArtStep(ours, VIEWS), PixArtTextContext(ours)
    expected = step(latents, plucker, times, context_graph(text), mask)
    other = torch.where(mask[..., None] != 0, text, 30.0)
    assert torch.equal(step(latents, plucker, times, context_graph(other), mask), expected)
    assert not torch.equal(step(latents, plucker, times, context_graph(other)), expected)


def test_masked_tokens_are_dropped_wherever_they_stand():
    text = torch.arange(2 * 5 * 3.0).reshape(2, 5, 3)
    mask = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 1, 1, 0]])
    tokens, kept = drop_masked_tokens(text, mask)
    assert torch.equal(tokens, text[:, [0, 2, 3]])
    assert kept.tolist() == [[True, False, True], [False, True, True]]
    with pytest.raises(ValueError, match=r"rows \[1\] keep no token"):
        drop_masked_tokens(text, torch.tensor([[1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]))


class LinearRows:
    """Counts the vectors that go through every linear layer of a network, by its state-dict name."""

    def __init__(self, network: nn.Module) -> None:
        self.rows: Counter[str] = Counter()
        for name, module in network.named_modules():
            if isinstance(module, nn.Linear):
                module.register_forward_pre_hook(lambda layer, given, name=name: self._count(layer, given[0], name))

    def _count(self, layer: nn.Linear, given: Tensor, name: str) -> None:
        self.rows[name] += given.numel() // layer.in_features

    def take(self) -> Counter[str]:
        counted, self.rows = self.rows, Counter()
        return counted


def is_text_layer(name: str) -> bool:
    return name.startswith("caption_projection.") or name.endswith((".attn2.to_k", ".attn2.to_v"))


@torch.no_grad()
def test_text_is_projected_once_per_request_and_without_its_padding():
    ours, reference = networks()
    latents, plucker, times, text, mask, _ = inputs()
    rows, steps = len(LENGTHS), 3
    counted, counted_before = LinearRows(ours), LinearRows(reference)
    text_layers = {n for n, module in ours.named_modules() if isinstance(module, nn.Linear) and is_text_layer(n)}
    assert len(text_layers) == 2 + 2 * LAYERS  # two caption layers, keys and values of every layer

    short = drop_masked_tokens(text, mask)
    context = PixArtTextContext(ours)(short.tokens)
    assert counted.take() == dict.fromkeys(text_layers, rows * max(LENGTHS))
    step = PixArtStep(ours, VIEWS)
    for _ in range(steps):
        step(latents, plucker, times, context, short.kept)
        reference_step(reference, torch.cat([latents, plucker], 2), times, text, mask)
    ran, before = counted.take(), counted_before.take()
    assert not any(is_text_layer(name) for name in ran)
    for name in before:
        if is_text_layer(name):
            assert before[name] == steps * rows * VIEWS * PADDED, name
        elif name.startswith("adaln_single."):  # time modulation: per object, not per view
            assert (ran[name], before[name]) == (steps * rows, steps * rows * VIEWS), name
        else:  # the work on the images is the same
            assert ran[name] == before[name] == steps * rows * VIEWS * 16, name


def test_gradients_equal_those_of_the_reference_way():
    ours, reference = networks()
    latents, plucker, times, text, mask, _ = inputs()
    PixArtStep(ours, VIEWS)(latents, plucker, times, PixArtTextContext(ours)(text), mask).square().mean().backward()
    reference_step(reference, torch.cat([latents, plucker], 2), times, text, mask).square().mean().backward()
    expected = {name: parameter.grad for name, parameter in reference.named_parameters()}
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad - expected[name]).abs().max() <= 1e-5 * largest, name


@torch.no_grad()
def test_expanded_input_starts_as_the_base_network():
    base = PixArtTransformer2DModel(**{**NETWORK, "in_channels": 4}).eval()
    wide, _ = networks(IMAGE_NETWORK)
    wide.load_state_dict(expand_input_channels(base.state_dict(), 11, "pos_embed.proj.weight"))
    set_tall_views(base, VIEWS + 1)
    latents, plucker, times, text, mask, condition = inputs(1)
    context = PixArtTextContext(base)(text)
    images = stack_views(torch.cat([condition[:, None], latents], dim=1))
    expected = base(images, context, times, encoder_attention_mask=mask).sample
    expected = split_views(expected, VIEWS + 1)[:, 1:, :4]
    assert_near(PixArtStep(wide, VIEWS)(latents, plucker, times, context, mask, condition), expected)


def test_misuse_is_refused():
    text, image = build_network(NETWORK, VIEWS), build_network(IMAGE_NETWORK, VIEWS)
    latents, plucker, times, tokens, mask, condition = inputs()
    with pytest.raises(ValueError, match="num_views = 3"):
        PixArtStep(text, 3)
    with pytest.raises(ValueError, match="must be set for 5 views in all, it is for 4"):
        PixArtStep(build_network(IMAGE_NETWORK, VIEWS - 1), VIEWS)
    with pytest.raises(ValueError, match="single ones"):
        PixArtStep(PixArtTransformer2DModel(**NETWORK), VIEWS)
    with pytest.raises(ValueError, match="in_channels = 12"):
        build_network({**NETWORK, "in_channels": 12}, VIEWS)
    with pytest.raises(ValueError, match="pos_embed is a TallPatchEmbed"):
        set_tall_views(text, VIEWS)
    with pytest.raises(ValueError, match="caption_projection is a NoneType"):
        build_network({**NETWORK, "caption_channels": None}, VIEWS)
    for network, given, message in ((text, condition, "given, but"), (image, None, "missing, but")):
        with pytest.raises(ValueError, match=message):
            step = PixArtStep(network, VIEWS)
            step(latents, plucker, times, PixArtTextContext(network)(tokens), mask, given)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("config", [NETWORK, IMAGE_NETWORK], ids=["text", "image"])
@torch.no_grad()
def test_onnx_graphs_take_any_number_of_rows_and_tokens(tmp_path: Path, config):
    ours, _ = networks(config)
    ours.requires_grad_(False)
    context_module, step_module = PixArtTextContext(ours), PixArtStep(ours, VIEWS)
    context_path, step_path = str(tmp_path / "context.onnx"), str(tmp_path / "step.onnx")
    rows, rows_and_tokens = {0: "rows"}, {0: "rows", 1: "tokens"}
    names = ["latents", "plucker", "timesteps", "context", *step_module.extra_inputs]
    axes = {name: rows_and_tokens if name in ("context", "kept") else rows for name in names}

    def arguments(count: int, seed: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        latents, plucker, times, text, mask, condition = inputs(count, seed)
        text, kept = drop_masked_tokens(text, mask)
        given = (latents, plucker, times, context_module(text), kept, condition)
        return text, given[: len(names)]

    text, given = arguments(2, 1)
    torch.onnx.export(
        context_module,
        (text,),
        context_path,
        dynamo=False,
        input_names=["text"],
        dynamic_axes={"text": rows_and_tokens},
    )
    torch.onnx.export(step_module, given, step_path, dynamo=False, input_names=names, dynamic_axes=axes)
    # the stock forward's squeeze of a dimension must not become a branch
    assert not {"If", "Loop"} & {node.op_type for node in onnx.load(step_path).graph.node}
    context_graph, step_graph = onnxruntime.InferenceSession(context_path), onnxruntime.InferenceSession(step_path)
    for count in (1, 3):  # 5 and 7 tokens
        text, given = arguments(count, 2)
        context = torch.from_numpy(context_graph.run(None, {"text": text.numpy()})[0])
        assert_near(context, given[3])
        feeds = {name: tensor.numpy() for name, tensor in zip(names, given, strict=True)}
        assert_near(torch.from_numpy(step_graph.run(None, feeds)[0]), step_module(*given))


def test_position_table_counts_tokens_from_0_to_15():
    """Base size 16: the sines of whole numbers, columns first, not of coordinates squeezed to another base size."""
    table = build_network({**NETWORK, "sample_size": 32}, VIEWS).pos_embed.pos_embed[0].unflatten(0, (16, 16))
    frequencies = 10000 ** -(torch.arange(WIDTH // 4) / (WIDTH // 4))
    angles = torch.arange(16)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # [16, d / 2]
    assert_near(table[..., : WIDTH // 2], waves[None].expand(16, -1, -1))
    assert_near(table[..., WIDTH // 2 :], waves[:, None].expand(-1, 16, -1))


@pytest.mark.parametrize("size", [(8, 8), (12, 12), (4, 10)])
def test_views_of_any_size_have_the_stock_positions(size):
    torch.manual_seed(0)
    stock = PixArtTransformer2DModel(**NETWORK).pos_embed
    views = torch.randn(2, VIEWS, NETWORK["in_channels"], *size)
    tall = TallPatchEmbed(stock, VIEWS)(stack_views(views))
    assert_near(tall, stock(views.flatten(0, 1)).unflatten(0, (2, VIEWS)).flatten(1, 2))


def test_ddim_clips_and_ends_at_alpha_one():
    """The base models' scheduler configs lack both keys; epsilon for text, v with a condition view."""
    text, image = (spec.schedule for spec in (PIXART_SIGMA, image_conditioned(PIXART_SIGMA)))
    assert (text.prediction_type, image.prediction_type) == ("epsilon", "v_prediction")
    last = build_sampler(text, "ddim", 4, 0.0).coeffs[-1]
    assert last[COEFFICIENTS.index("c_k")] == 1 and last[COEFFICIENTS.index("c_x")] == 0
