"""Multi-view SD3 on the stock transformer: what it joins, what is computed once per request, and the two graphs."""

from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from diffsplat import backbones
from diffsplat.denoisers.sd3 import SD3Context, SD3Modulations, SD3Step, build_network, set_multiview_patches
from diffsplat.denoisers.view_inputs import network_input, split_views, stack_views
from diffsplat.sampling.schedulers import build_sampler

MANIFESTS = Path(__file__).parents[1] / "golden" / "manifests"
VIEWS, CHANNELS, SIZE, WIDTH = 4, 3, 6, 16
TEXT = {
    "sample_size": SIZE,
    "in_channels": CHANNELS + 6,
    "out_channels": CHANNELS,
    "num_layers": 3,
    "attention_head_dim": WIDTH // 2,
    "num_attention_heads": 2,
    "joint_attention_dim": 12,
    "caption_projection_dim": WIDTH,
    "pooled_projection_dim": 10,
    "pos_embed_max_size": 9,  # crops of 3 x 3 patches begin at an odd offset
}
IMAGE = {**TEXT, "in_channels": CHANNELS + 7}
SD35 = {"dual_attention_layers": (0, 1), "qk_norm": "rms_norm"}
NETWORKS = {
    "sd3-text": TEXT,
    "sd3-image": IMAGE,
    "sd35-text": {**TEXT, **SD35},
    "sd35-image": {**IMAGE, **SD35},
}
every_network = pytest.mark.parametrize("config", NETWORKS.values(), ids=NETWORKS)


def network(config: dict = NETWORKS["sd35-text"], views: int = VIEWS) -> SD3Transformer2DModel:
    torch.manual_seed(0)
    return build_network(config, views).eval()


def request_work(transformer: SD3Transformer2DModel, embeddings: Tensor, pooled: Tensor, timesteps: Tensor):
    """Context and modulations: what a request computes once."""
    return SD3Context(transformer)(embeddings), SD3Modulations(transformer)(pooled, timesteps)


class Inputs:
    """Of R rows: maps [R, V, ...], embeddings [R, L, 12], pooled [R, 10], a condition for image models."""

    def __init__(self, rows: int, config: dict = TEXT, tokens: int = 5, seed: int = 1) -> None:
        g = torch.Generator().manual_seed(seed)
        self.latents = torch.randn(rows, VIEWS, CHANNELS, SIZE, SIZE, generator=g)
        self.plucker = torch.randn(rows, VIEWS, 6, SIZE, SIZE, generator=g)
        self.embeddings = torch.randn(rows, tokens, 12, generator=g)
        self.pooled = torch.randn(rows, 10, generator=g)
        condition = torch.randn(rows, CHANNELS, SIZE, SIZE, generator=g)
        self.condition = condition if config["in_channels"] == CHANNELS + 7 else None

    def whole(self, transformer: SD3Transformer2DModel, timesteps: Tensor) -> Tensor:
        """[R, V', C, h, w] from the whole transformer, everything computed at this step. timesteps: [R]."""
        seen = network_input(self.latents, self.plucker, self.condition)
        tall = transformer(stack_views(seen), self.embeddings, self.pooled, timesteps).sample
        return split_views(tall, seen.shape[1])


def assert_near(actual: Tensor, expected: Tensor, bound: float = 1e-5) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= bound * expected.abs().max()


def test_full_size_step_holds_a_third_less():
    """Full-size SD3.5 on the meta device: which weights a step no longer reads, and how long a request's rows are."""
    with torch.device("meta"):
        transformer = build_network(backbones.SD35.denoiser, VIEWS)
        context, modulate, step = SD3Context(transformer), SD3Modulations(transformer), SD3Step(transformer, VIEWS)
        modulations = modulate(torch.empty(2, 2048), torch.empty(28))
    assert modulations.shape == (2, 28, (13 * 9 + 11 * 6 + 23 * 6 + 2 + 2) * 1536)
    parts = [sum(p.numel() for p in part.parameters()) for part in (transformer, context, modulate, step)]
    assert parts[0] == sum(parts[1:])
    assert sum(p.numel() for p in modulate.layers.parameters()) == 767_270_400
    assert {id(p) for p in step.parameters()} < {id(p) for p in transformer.parameters()}, "weights are shared"


def test_defaults_of_a_request_are_possible():
    table = build_sampler(backbones.SD3.schedule, backbones.SD3.scheduler, backbones.SD3.steps, eta=0.0)
    assert len(table.timesteps) == 28 and table.timesteps[0] == 1000


@torch.no_grad()
@pytest.mark.parametrize("config", [TEXT, NETWORKS["sd35-text"]], ids=["sd3", "sd35"])
def test_one_view_equals_the_stock_network(config):
    torch.manual_seed(0)
    stock, ours = SD3Transformer2DModel(**config).eval(), SD3Transformer2DModel(**config).eval()
    names = list(stock.state_dict())
    set_multiview_patches(ours, 1)
    ours.load_state_dict(stock.state_dict())
    assert list(ours.state_dict()) == names
    given = Inputs(2)
    sample = network_input(given.latents, given.plucker)[:, 0]
    times = torch.tensor([3.0, 999.5])
    expected = stock(sample, given.embeddings, given.pooled, times).sample
    assert torch.equal(ours(sample, given.embeddings, given.pooled, times).sample, expected)


@torch.no_grad()
@every_network
def test_views_see_each_other_and_objects_do_not(config):
    transformer, given, times = network(config), Inputs(2, config), torch.tensor([500.0, 500.0])
    before = given.whole(transformer, times)
    given.latents = given.latents.clone()
    given.latents[0, 3] += 1.0
    change = (given.whole(transformer, times) - before).abs().amax(dim=(2, 3, 4))  # [R, V']
    assert (change[0] > 1e-5).all() and (change[1] == 0).all()


@torch.no_grad()
def test_view_order_does_not_matter():
    """There is no view embedding, and every view has the same positions: permuted views, permuted predictions."""
    transformer, given, times = network(), Inputs(1), torch.tensor([500.0])
    order = [2, 0, 3, 1]
    expected = given.whole(transformer, times)[:, order]
    given.latents, given.plucker = given.latents[:, order], given.plucker[:, order]
    assert_near(given.whole(transformer, times), expected)


@torch.no_grad()
def test_positions_are_the_centre_of_the_checkpoints_table():
    transformer, given, times = network(), Inputs(1), torch.tensor([500.0])
    before = given.whole(transformer, times)
    grid = transformer.pos_embed.pos_embed.view(9, 9, WIDTH)
    outside = torch.ones(9, 9, dtype=torch.bool)
    outside[3:6, 3:6] = False
    grid[outside] = float("nan")
    assert torch.equal(given.whole(transformer, times), before)
    grid[3:6, 3:6] += torch.randn(3, 3, WIDTH, generator=torch.Generator().manual_seed(0))
    assert (given.whole(transformer, times) - before).abs().max() > 1e-3, "the table is made anew"
    with pytest.raises(ValueError, match="10 x 3 patches: the position table has 9"):
        transformer.pos_embed(torch.zeros(1, CHANNELS + 6, VIEWS * 20, 6))


@torch.no_grad()
@every_network
def test_two_graphs_equal_the_whole_network(config):
    """Rows at different steps, each step's modulations taken from the whole schedule's: the same prediction."""
    transformer, given = network(config), Inputs(3, config)
    schedule = build_sampler(backbones.SD3.schedule, "flow", 5, eta=0.0).timesteps
    context, modulations = request_work(transformer, given.embeddings, given.pooled, schedule)
    step = SD3Step(transformer, VIEWS)
    at = torch.tensor([0, 3, 4])
    rows = modulations[torch.arange(3), at]
    prediction = step(given.latents, given.plucker, rows, context, given.condition)
    assert_near(prediction, given.whole(transformer, schedule[at])[:, -VIEWS:])
    own = request_work(transformer, given.embeddings, given.pooled, schedule[at][:, None])[1][:, 0]
    assert_near(own, rows)


@torch.no_grad()
@every_network
def test_batched_rows_equal_single_rows(config):
    transformer, given = network(config), Inputs(3, config)
    context, modulations = request_work(transformer, given.embeddings, given.pooled, torch.tensor([900.0, 500.0, 20.0]))
    step, at = SD3Step(transformer, VIEWS), torch.arange(3)
    batched = step(given.latents, given.plucker, modulations[at, at], context, given.condition)
    for r in range(3):
        row = slice(r, r + 1)
        condition = None if given.condition is None else given.condition[row]
        single = step(given.latents[row], given.plucker[row], modulations[row, r], context[row], condition)
        assert_near(batched[row], single)


class Calls:
    """Rows that pass through modules, counted by forward hooks."""

    def __init__(self, *modules: nn.Module) -> None:
        self.calls = self.rows = 0
        for module in modules:
            module.register_forward_hook(self._count)

    def _count(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.calls += 1
        self.rows += output.numel() // output.shape[-1]


@torch.no_grad()
def test_request_work_is_done_once_for_all_steps():
    """Counted over a guided request of 6 steps: layer calls, and every FLOP that is gone."""
    transformer, given, rows = network(), Inputs(2), 2
    schedule = build_sampler(backbones.SD3.schedule, "flow", 6, eta=0.0).timesteps
    steps, tokens = len(schedule), given.embeddings.shape[1]
    linears = [module.linear for name, module in transformer.named_modules() if hasattr(module, "silu")]
    assert len(linears) == 2 * TEXT["num_layers"] + 1
    modulation = Calls(*linears)
    text = Calls(transformer.context_embedder)
    pooled, time = (
        Calls(transformer.time_text_embed.text_embedder),
        Calls(transformer.time_text_embed.timestep_embedder),
    )
    counters = (modulation, text, pooled, time)

    with FlopCounterMode(display=False) as before:
        for when in schedule:
            given.whole(transformer, when.expand(rows))
    assert [c.calls for c in counters] == [steps * len(linears), steps, steps, steps]
    for counter in counters:
        counter.calls = counter.rows = 0

    step_graph = SD3Step(transformer, VIEWS)
    with FlopCounterMode(display=False) as once:
        context, modulations = request_work(transformer, given.embeddings, given.pooled, schedule)
    assert [c.calls for c in counters] == [len(linears), 1, 1, 1]
    assert [c.rows for c in counters] == [len(linears) * rows * steps, rows * tokens, rows, steps]
    with FlopCounterMode(display=False) as repeated:
        for k in range(steps):
            step_graph(given.latents, given.plucker, modulations[:, k], context)
    assert [c.calls for c in counters] == [len(linears), 1, 1, 1], "a step runs a layer of the request"

    def flops(*layers: nn.Module) -> int:
        weights = (p for layer in layers for p in layer.parameters() if p.ndim == 2)
        return sum(2 * weight.numel() for weight in weights)

    embed = transformer.time_text_embed
    text_work = rows * tokens * flops(transformer.context_embedder) + rows * flops(embed.text_embedder)
    time_work = steps * flops(embed.timestep_embedder)  # of the schedule, not of every row
    modulation_work = rows * steps * flops(*linears)
    assert once.get_total_flops() == text_work + time_work + modulation_work
    assert (
        before.get_total_flops() - repeated.get_total_flops() == steps * text_work + rows * time_work + modulation_work
    )


def test_gradients_reach_every_weight():
    """Through the two graphs as through the whole network."""
    transformer, given, times = network(NETWORKS["sd35-image"]).train(), Inputs(2, IMAGE), torch.tensor([20.0, 700.0])
    context, modulations = request_work(transformer, given.embeddings, given.pooled, times[:, None])
    step = SD3Step(transformer, VIEWS)
    step(given.latents, given.plucker, modulations[:, 0], context, given.condition).square().mean().backward()
    cut = {name: parameter.grad for name, parameter in transformer.named_parameters()}
    assert all(gradient is not None for gradient in cut.values())
    transformer.zero_grad()
    given.whole(transformer, times)[:, 1:].square().mean().backward()
    for name, parameter in transformer.named_parameters():
        assert (cut[name] - parameter.grad).abs().max() <= 1e-4 * max(1e-4, parameter.grad.abs().max()), name


@torch.no_grad()
def test_condition_view_stands_in_front_and_is_thrown_away():
    given = Inputs(2, IMAGE)
    seen = network_input(given.latents, given.plucker, given.condition)
    latents, rays, mask = seen.split([CHANNELS, 6, 1], dim=2)
    assert torch.equal(latents[:, 0], given.condition) and torch.equal(latents[:, 1:], given.latents)
    assert torch.equal(rays[:, 0], given.plucker[:, 0]) and torch.equal(rays[:, 1:], given.plucker)
    assert (mask[:, 0] == 0).all() and (mask[:, 1:] == 1).all()

    transformer = network(IMAGE)
    step = SD3Step(transformer, VIEWS)
    context, modulations = request_work(transformer, given.embeddings, given.pooled, torch.tensor([500.0]))
    inputs = (given.latents, given.plucker, modulations[:, 0], context)
    with_image = step(*inputs, given.condition)
    assert with_image.shape == given.latents.shape
    assert (with_image - step(*inputs, torch.zeros_like(given.condition))).abs().amax(dim=(2, 3, 4)).min() > 1e-5
    with pytest.raises(ValueError, match="condition_latents: missing, but this is an image model"):
        step(*inputs)
    with pytest.raises(ValueError, match="condition_latents: given, but this is a text model"):
        SD3Step(network(TEXT), VIEWS)(*inputs, given.condition)


def test_wrong_networks_are_refused():
    with pytest.raises(ValueError, match="num_views = 3: the transformer's patches are set for 4 views"):
        SD3Step(network(IMAGE), 3)
    with pytest.raises(ValueError, match="set for single views"):
        SD3Step(SD3Transformer2DModel(**TEXT), VIEWS)
    with pytest.raises(ValueError, match=r"in_channels = 3: must be 9 \(text\) or 10 \(image\)"):
        network({**TEXT, "in_channels": CHANNELS})


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@torch.no_grad()
def test_onnx_graphs_take_any_number_of_rows_tokens_and_steps(tmp_path: Path):
    config = {**NETWORKS["sd35-image"], "pos_embed_max_size": 40}
    transformer = network(config).requires_grad_(False)
    modules = {
        "context": SD3Context(transformer),
        "modulations": SD3Modulations(transformer),
        "step": SD3Step(transformer, VIEWS),
    }
    axes = {
        "context": {"embeddings": {0: "rows", 1: "tokens"}},
        "modulations": {"pooled": {0: "rows"}, "timesteps": {0: "steps"}},
        "step": {
            "latents": {0: "rows"},
            "plucker": {0: "rows"},
            "modulations": {0: "rows"},
            "context": {0: "rows", 1: "tokens"},
            "condition": {0: "rows"},
        },
    }

    def samples(rows: int, tokens: int, steps: int) -> dict[str, tuple[Tensor, ...]]:
        given = Inputs(rows, config, tokens)
        time = (given.pooled, torch.linspace(1000, 10, steps))
        context, modulations = modules["context"](given.embeddings), modules["modulations"](*time)
        return {
            "context": (given.embeddings,),
            "modulations": time,
            "step": (given.latents, given.plucker, modulations[:, -1], context, given.condition),
        }

    sessions = {}
    for name, module in modules.items():
        path = str(tmp_path / f"{name}.onnx")
        example = samples(2, 5, 3)[name]
        names = list(axes[name])
        torch.onnx.export(
            module, example, path, dynamo=False, opset_version=18, input_names=names, dynamic_axes=axes[name]
        )
        sessions[name] = onnxruntime.InferenceSession(path)
        weights = {tuple(tensor.dims) for tensor in onnx.load(path).graph.initializer}
        assert not any(40 in dims or 1600 in dims for dims in weights), "the graph carries the whole position table"
        modulation_weights = {(WIDTH, 9 * WIDTH), (9 * WIDTH, WIDTH), (WIDTH, 6 * WIDTH), (6 * WIDTH, WIDTH)}
        assert bool(weights & modulation_weights) == (name == "modulations")
    for sizes in ((1, 5, 4), (3, 9, 2)):
        for name, example in samples(*sizes).items():
            feeds = {key: tensor.numpy() for key, tensor in zip(axes[name], example, strict=True)}
            (ours,) = sessions[name].run(None, feeds)
            assert_near(torch.from_numpy(ours), modules[name](*example))
