"""Half precision behind a float32 interface."""

import pytest
import torch

from diffsplat.backends import BACKENDS, unavailable
from diffsplat.backends.precision import DTYPES, FLOAT32_INPUTS, cast_network
from diffsplat.bundle import Bundle
from diffsplat.networks import served_precision
from diffsplat.runtime import bundle_graph, bundle_graphs
from export.graphs import graph_specs
from export.parity import LIMITS, relative_error


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_every_graph_of_a_bundle_takes_and_gives_float32(tiny_bundle: Bundle, precision: str) -> None:
    """And differs from float32 by the round-off of its type: it really computes in it."""
    for graph in graph_specs(tiny_bundle.spec):
        inputs = graph.sample_inputs(graph.serving_sizes)
        half = bundle_graphs(tiny_bundle, [graph.name], precision)[graph.name]
        expected, actual = bundle_graph(tiny_bundle, graph.name)(*inputs), half(*inputs)
        assert half.precision == served_precision(graph.network(tiny_bundle.spec), precision)
        assert actual.dtype == torch.float32
        error = relative_error(actual, expected)
        assert error == 0 if half.precision == "fp32" else 1e-5 < error <= LIMITS[precision]


def test_parts_that_stay_in_float32_are_not_cast() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    cast_network(network, "bf16", ["1"])
    assert (network[0].weight.dtype, network[1].weight.dtype) == (torch.bfloat16, torch.float32)
    assert network(torch.ones(1, 2, dtype=torch.bfloat16)).dtype == torch.float32


def test_timesteps_reach_their_sinusoids_in_float32(tiny_bundle: Bundle) -> None:
    """bf16 would round 257 to 256."""
    (graph,) = (graph for graph in graph_specs(tiny_bundle.spec) if graph.name == "denoiser")
    assert "timesteps" in FLOAT32_INPUTS and "timesteps" in [tensor.name for tensor in graph.inputs]
    half = bundle_graphs(tiny_bundle, ["denoiser"], "bf16")["denoiser"]
    latents, plucker, _, context = graph.sample_inputs(graph.serving_sizes)
    at = [half(latents, plucker, torch.full((2,), time), context) for time in (256.0, 257.0)]
    assert not torch.equal(*at)


def test_a_back_end_says_what_it_lacks() -> None:
    assert unavailable("torch", "cpu", "bf16") is None
    assert "onnxruntime has no bf16 on cpu" in str(unavailable("onnxruntime", "cpu", "bf16"))
    assert all(set(precisions) <= set(DTYPES) for info in BACKENDS.values() for precisions in info.precisions.values())
