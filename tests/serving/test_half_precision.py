"""A run whose numbers leave the range of fp16 fails with the stage, the graph and the precision; bf16 has the range."""

import pytest
import torch
from diffsplat_client.request import GenerationRequest
from torch import nn

from diffsplat.bundle import Bundle
from diffsplat.denoisers.graph_inputs import STEP
from diffsplat.graph import Precision
from diffsplat.pipeline import Pipeline
from diffsplat.stages.errors import NotFiniteError


def louder(module: nn.Module) -> None:
    """Scale what the first convolution gives; a norm follows and takes the factor away again."""
    *_, first = (layer for name, layer in module.named_modules() if name.endswith("conv_in"))  # a decoder's comes last
    with torch.no_grad():
        first.bias.fill_(60_000.0)  # a number of fp16 itself, to which the convolution adds
        first.weight.mul_(1e4)


def generate(bundle: Bundle, precision: Precision, stage: str) -> None:
    pipeline = Pipeline.from_bundle(bundle, precision)
    graph = {"denoise": pipeline.denoise.graphs[STEP], "decode": pipeline.decode.decoder}[stage]
    assert graph.precision == precision
    louder(graph.module)
    pipeline.generate(GenerationRequest("a red cube", seed=1, steps=2))


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        ("denoise", r"step 1 of 2 gave latents that are not finite \(graph denoiser, torch in fp16\)"),
        ("decode", r"decode gave splats that are not numbers \(graph decoder, torch in fp16\)"),
    ],
)
def test_numbers_beyond_fp16_fail_the_request_and_bf16_holds_them(tiny_bundle: Bundle, stage: str, says: str) -> None:
    with pytest.raises(NotFiniteError, match=says):
        generate(tiny_bundle, "fp16", stage)
    generate(tiny_bundle, "bf16", stage)
