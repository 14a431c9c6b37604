"""FLOPs: the counter against counts by hand and by torch, ours against the performance table, and work that is gone."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffsplat_client.request import GenerationRequest
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.flops import __main__ as command
from benchmarks.flops.counter import Work, WorkCounter, count
from benchmarks.flops.report import missed
from benchmarks.flops.stages import Settings, meta_inputs, meta_network
from diffsplat.backbones import SD15, SD35
from diffsplat.denoisers.graph_inputs import CONTEXT, MODULATIONS, STEP
from diffsplat.denoisers.view_inputs import network_input, stack_views
from diffsplat.networks import build_graph_module
from diffsplat.pipeline import Pipeline
from export.graphs import graph_specs
from tests.families import family_spec, write_family_bundle

BF16 = torch.bfloat16


class Small(nn.Module):
    """A convolution, two layers, and masked attention of 35 tokens to 4."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.query = nn.Linear(8, 6, bias=False)
        self.key = nn.Linear(10, 6)
        self.unused = nn.Linear(6, 6)

    def forward(self, images: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        queries = self.query(self.conv(images).flatten(2).transpose(1, 2)).unflatten(-1, (2, 3)).transpose(1, 2)
        keys = self.key(text).unflatten(-1, (2, 3)).transpose(1, 2)
        return F.softmax(F.scaled_dot_product_attention(queries, keys, keys, mask), dim=-1)


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_counter_equals_a_count_by_hand(device: str) -> None:
    network = Small().to(device, BF16)
    images, text = (
        torch.zeros(2, 3, 10, 14, dtype=BF16, device=device),
        torch.zeros(2, 4, 10, dtype=BF16, device=device),
    )
    mask = torch.zeros(2, 1, 1, 4, dtype=BF16, device=device)
    counted = count(network, images, text, mask)
    pixels = 2 * 5 * 7
    conv, query, key = 2 * pixels * 8 * (3 * 3 * 3), 2 * pixels * 8 * 6, 2 * 8 * 10 * 6
    attention = 2 * 2 * (pixels * 4 * 2 * 3)
    assert counted.work.flops == conv + query + key + attention
    numbers = (840 + 216 + 8 + 8 * pixels) + (8 * pixels + 48 + 6 * pixels) + (80 + 60 + 6 + 48)
    numbers += 6 * pixels + 48 + 48 + 8 + 6 * pixels  # attention: keys stand for the values too
    assert counted.work.bytes == 2 * numbers
    assert counted.work.products == 4
    assert counted.work.roofline_s == pytest.approx(2 * numbers / 4.3e12)  # so small that memory is what counts
    assert counted.parameters == set(network.parameters()) - set(network.unused.parameters())
    assert not torch.is_inference_mode_enabled() and network.conv.weight.sum().requires_grad, "the counter is gone"


def test_work_adds_up() -> None:
    once, step = Work(5, 7, 1, 0.5), Work(2, 3, 2, 0.25)
    assert once + step.times(3) == Work(11, 16, 7, 1.25)


@pytest.mark.parametrize("name", ["sdxl", "pixart_sigma_image", "sd35"])
def test_counter_agrees_with_torchs_own(name: str) -> None:
    """On every graph of a small backbone; torch's sees what attention is made of on the meta device."""
    spec, counts = family_spec(name), []
    for graph in graph_specs(spec):
        network = meta_network(spec, graph.network(spec))
        module, inputs = build_graph_module(graph.name, spec, network), meta_inputs(spec, graph, Settings())
        with torch.no_grad(), FlopCounterMode(display=False) as theirs:
            module(*inputs)
        counts.append((count(module, *inputs).work.flops, theirs.get_total_flops()))
    assert len(counts) > 3 and all(ours == other > 0 for ours, other in counts), counts


def test_the_tables_step_is_what_the_counter_finds() -> None:
    """SD1.5 as the reference calls it, text repeated for every view: 1.625 TFLOP, text keys and values 1.45 % of it."""
    unet: Any = meta_network(SD15, "denoiser")
    views = 2 * SD15.geometry.views
    sample, text = (torch.empty(shape, dtype=BF16, device="meta") for shape in ((views, 10, 32, 32), (views, 77, 768)))
    times = torch.empty(views, device="meta")
    whole = count(lambda: unet(sample, times, encoder_hidden_states=text)).work.flops
    assert whole / 1e12 == pytest.approx(1.625, abs=0.0006)
    once = count(build_graph_module(CONTEXT, SD15, unet), text).work.flops
    assert once / whole == pytest.approx(0.0145, abs=0.0001)


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Figures of three full-size backbones, through the command line."""
    path = tmp_path_factory.mktemp("flops") / "made" / "flops.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["flops", "--backbone", "sd15", "pixart_sigma", "sd35", "--json", str(path)])
        assert command.main() == 0
    written = json.loads(path.read_text())
    assert written["steps"] == 20 and written["versions"]["torch"] == torch.__version__
    return written["backbones"]


def test_a_request_needs_less_than_the_table(figures: dict[str, Any]) -> None:
    """All steps of the denoiser and what it computes once, over the table's step times steps."""
    ratios = {name: values["denoiser"]["ratio"] for name, values in figures.items()}
    assert ratios["sd15"] <= 0.99
    assert ratios["pixart_sigma"] <= 0.85  # 16 tokens instead of 300
    assert ratios["sd35"] < 1
    bars = {name: values["denoiser"].get("bar") for name, values in figures.items()}
    assert bars == {"sd15": 0.99, "pixart_sigma": 0.85, "sd35": None}


def test_stages_that_are_the_reference_s_cost_what_its_cost(figures: dict[str, Any]) -> None:
    rows = [(name, figures["sd15"]["stages"][name]) for name in ("text_encoder", "decoder", "tiny_decoder")]
    rows += [(name, figures["sd15"]["stages"][name]) for name in ("image_encoder", "elevest")]
    rows += [(name, figures["sd35"]["stages"][name]) for name in ("text_encoder", "text_encoder_2")]
    for name, row in rows:
        assert row["ratio"] == pytest.approx(1, abs=0.02), name
        assert row["roofline_ms"] == pytest.approx(row.get("table_roofline_ms", row["roofline_ms"]), abs=0.008), name


def test_what_misses_its_bar_is_told(figures: dict[str, Any]) -> None:
    denoiser = figures["sd15"]["denoiser"]
    assert missed(figures["sd15"]) == []
    worse = {**denoiser, "ratio": 0.9901, "parameters_read_once_and_in_steps": 2_500_000}
    told = missed({**figures["sd15"], "denoiser": worse})
    assert told[0] == "denoiser over the table 0.9901, bar 0.99"
    assert told[1].startswith("2.5 M parameters of the part before the steps")


def test_a_step_of_sd35_has_neither_modulations_nor_context() -> None:
    """Full size: the whole transformer's work is that of a step and of the graphs before it, which share no weight."""
    transformer: Any = meta_network(SD35, "denoiser")
    graphs = {graph.name: graph for graph in graph_specs(SD35)}
    inputs = {name: meta_inputs(SD35, graphs[name], Settings(steps=2)) for name in (CONTEXT, MODULATIONS, STEP)}
    modules = {name: build_graph_module(name, SD35, transformer) for name in inputs}
    context, modulations, step = (count(modules[name], *inputs[name]) for name in inputs)
    (embeddings,), (pooled, times), (latents, plucker, *_) = inputs.values()
    # two rows with a time each stand for a schedule of two steps: the time embedding's layers see two of either
    whole = count(lambda: transformer(stack_views(network_input(latents, plucker)), embeddings, pooled, times))
    one_step = count(modules[MODULATIONS], pooled, times[:1]).work.flops
    time_work = modulations.work.flops - one_step  # of the second step: its modulations in two rows, its time in one
    layers = 2 * 2 * sum(layer.weight.numel() for layer in modules[MODULATIONS].layers)
    time_embedding = time_work - layers
    assert time_embedding == 2 * sum(
        weight.numel() for weight in transformer.time_text_embed.timestep_embedder.parameters() if weight.ndim == 2
    )
    assert whole.work.flops == step.work.flops + context.work.flops + one_step + time_embedding
    assert not step.parameters & (context.parameters | modulations.parameters)
    assert step.parameters | context.parameters | modulations.parameters == whole.parameters
    modulated = 767_270_400  # weights and biases of all AdaLN layers
    assert whole.parameter_count - step.parameter_count > modulated
    assert whole.work.bytes - step.work.bytes > 2 * modulated


@pytest.mark.parametrize("name", ["sdxl", "pixart_sigma", "sd35"])
def test_no_step_of_a_served_request_repeats_the_work_of_its_start(name: str, tmp_path: Path) -> None:
    """The stage itself, a small backbone: one counter while a request starts, one for each of its steps."""
    pipeline = Pipeline.from_bundle(write_family_bundle(tmp_path / name, name))
    work = pipeline.encode.run(GenerationRequest("a red cube", seed=1))
    with WorkCounter() as start:
        job = pipeline.denoise.start(work)
    steps = []
    while job.step < job.steps:
        with WorkCounter() as step:
            pipeline.denoise.step([job])
        steps.append(step)
    assert len(steps) == pipeline.denoise.spec.steps
    once = {
        tensor
        for graph in pipeline.denoise.graphs.values()
        if graph.name != STEP
        for tensor in graph.module.parameters()
    }
    assert once and once == start.parameters
    for step in steps:
        assert step.parameters and not step.parameters & start.parameters
        assert step.work == steps[0].work
