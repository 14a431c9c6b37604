"""Training calls every family's denoiser as serving does, and gradients reach all of its weights."""

import pytest
import torch
from torch import Tensor, nn

from diffsplat.backbones import BackboneSpec
from diffsplat.backends.eager import TorchGraph
from diffsplat.denoisers.graph_inputs import STEP, join_rows, prepare, request_graphs, step_input_names
from diffsplat.denoisers.interface import build_denoiser
from diffsplat.networks import build_graph_module
from diffsplat.text.features import TextFeatures
from tests.families import family_spec
from training.denoiser import TrainedDenoiser

NAMES = ("sd15", "sd21", "sdxl", "pixart_alpha", "pixart_sigma", "sd3", "sd35")
ALL = [*NAMES, *(f"{name}_image" for name in NAMES)]
ROWS = 3


def inputs_of(spec: BackboneSpec) -> tuple[Tensor, Tensor, Tensor, TextFeatures, Tensor | None]:
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    views, size, text = spec.geometry.views, spec.latent_size, spec.text
    mask = torch.ones(ROWS, text.tokens, dtype=torch.bool)
    if text.encoders[-1].masked:
        mask[0, 5:] = mask[2, 3:] = False
    features = TextFeatures(noise(ROWS, text.tokens, text.width), mask, noise(ROWS, text.pooled_width))
    image = noise(ROWS, spec.latent_channels, size, size) if spec.is_image_conditioned else None
    latents = noise(ROWS, views, spec.latent_channels, size, size)
    return latents, noise(ROWS, views, 6, size, size), torch.tensor([3.0, 500.5, 990.0]), features, image


def is_checkpointed(module: nn.Module) -> bool:
    return bool(getattr(module, "gradient_checkpointing", False))


def built(spec: BackboneSpec) -> nn.Module:
    torch.manual_seed(0)
    network = build_denoiser(spec)
    for parameter in network.parameters():
        if not parameter.any():  # zero starts would stop gradients
            nn.init.normal_(parameter, std=0.1)
    return network.train()


@pytest.mark.parametrize("name", ALL)
def test_it_predicts_what_serving_predicts(name: str) -> None:
    """Each row alone through the graphs that are served, at its own timestep."""
    spec = family_spec(name)
    network = built(spec)
    latents, plucker, timesteps, text, image = inputs_of(spec)
    with torch.no_grad():
        trained = TrainedDenoiser(spec, network)(latents, plucker, timesteps, text, image)
    graphs = {part: TorchGraph(part, build_graph_module(part, spec, network)) for part in (*request_graphs(spec), STEP)}
    for row in range(ROWS):
        alone = slice(row, row + 1)
        given = prepare(
            spec, graphs, TextFeatures(*(values[alone] for values in text)), timesteps[alone],
            None if image is None else image[row],
        )  # fmt: skip
        inputs = join_rows([given]) | {part: values[:, 0] for part, values in given.stepwise.items()}
        inputs |= {"latents": latents[alone], "plucker": plucker[alone], "timesteps": timesteps[alone]}
        served = graphs[STEP](*(inputs[part] for part in step_input_names(spec)))
        torch.testing.assert_close(trained[alone], served, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["sd21", "sdxl_image", "pixart_sigma", "pixart_alpha_image", "sd3", "sd35_image"])
def test_gradients_reach_every_weight_with_and_without_checkpointing(name: str) -> None:
    spec = family_spec(name)
    gradients = []
    for checkpointing in (False, True):
        network = built(spec)
        denoiser = TrainedDenoiser(spec, network)
        if checkpointing:  # as the loop does, after the stage has built its networks
            network.enable_gradient_checkpointing()
            switched = [module for module in denoiser.graphs[STEP].module.modules() if is_checkpointed(module)]
            assert switched
        prediction = denoiser(*inputs_of(spec))
        prediction.square().mean().backward()
        found = {key: parameter.grad for key, parameter in network.named_parameters()}
        assert [key for key, gradient in found.items() if gradient is None] == []
        gradients.append(found)
    for key, plain in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], plain, rtol=1e-3, atol=1e-6)
