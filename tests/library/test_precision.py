"""Half precision behind a float32 interface."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diffsplat.backbones.spec import ControlType
from diffsplat.backends import BACKENDS, unavailable
from diffsplat.backends.precision import DTYPES, FLOAT32_INPUTS, cast_network, without_parameters
from diffsplat.bundle import Bundle
from diffsplat.networks import bundle_network, network_builders, served_precision
from diffsplat.runtime import bundle_graph, bundle_graphs
from export.graphs import graph_specs
from export.parity import LIMITS, relative_error
from tests.families import family_spec


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


def test_a_network_is_loaded_in_its_type_without_ever_being_float32(tiny_bundle: Bundle) -> None:
    """No float32 tensor of the size of a weight is made: they are built without memory, and cast as they are read."""
    made: list[torch.Tensor] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.device.type != "meta":
                made.append(result)
            return result

    with without_parameters():
        built = network_builders(tiny_bundle.spec)["denoiser"]()
    assert all(parameter.is_meta for parameter in built.parameters())
    with Watch():
        cast_network(built, "bf16", device="cpu")
    assert {tensor.dtype for tensor in made if tensor.numel() > 64} == {torch.bfloat16}
    whole, half = (bundle_network(tiny_bundle, "denoiser", precision) for precision in ("fp32", "bf16"))
    for (name, mine), (other, right) in zip(half.state_dict().items(), whole.state_dict().items(), strict=True):
        assert name == other and torch.equal(mine, right.to(torch.bfloat16))


def test_what_no_file_holds_and_what_two_modules_share_survive_building_without_parameters() -> None:
    class Sharing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
            self.second.weight = self.first.weight
            self.register_buffer("table", torch.arange(3.0), persistent=False)

    with without_parameters():
        network = Sharing()
    cast_network(network, "fp16", device="cpu")
    assert network.first.weight is network.second.weight and not network.first.weight.is_meta
    assert torch.equal(network.table, torch.arange(3.0, dtype=torch.float16))
    assert torch.nn.Linear(1, 1).weight.device.type == "cpu"  # the next network is an ordinary one


@pytest.mark.parametrize(
    ("family", "controls"), [("sd15", ("depth",)), ("sdxl", ()), ("pixart_sigma", ()), ("sd35", ())]
)
def test_every_network_has_the_same_buffers_without_parameters(family: str, controls: tuple[ControlType, ...]) -> None:
    """Tables of positions and the like, which are in no file of weights, or are overwritten by one."""
    for name, build in network_builders(family_spec(family, controls, images=True)).items():
        with without_parameters():
            lean = build()
        whole = build()
        assert lean.state_dict().keys() == whole.state_dict().keys(), name
        for (own, mine), (other, right) in zip(lean.named_buffers(), whole.named_buffers(), strict=True):
            assert own == other and torch.equal(mine, right), f"{name}: {own}"
