"""A denoiser of any family as serving calls it, but with gradients: the same graphs, the same inputs."""

import functools
from typing import Any

import torch
from torch import Tensor, nn

from diffsplat.backbones import BackboneSpec
from diffsplat.denoisers.graph_inputs import STEP, join_rows, prepare, request_graphs, step_input_names
from diffsplat.graph import Backend, Precision
from diffsplat.networks import graph_modules
from diffsplat.text.features import TextFeatures


class TrainedGraph:
    """One graph of a network that is being trained."""

    backend: Backend = "torch"
    precision: Precision = "fp32"

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = name
        self.module = module

    @property
    def device(self) -> torch.device:
        """Where the module's weights lie now."""
        return next(self.module.parameters()).device

    def __call__(self, *inputs: Tensor) -> Any:
        """Run with gradients."""
        return self.module(*inputs)


class TrainedDenoiser:
    """The graphs of one denoiser, called for objects at different timesteps.

    Args:
        spec: Of the backbone.
        network: Of `build_denoiser(spec)`, on the device where it is trained.
    """

    def __init__(self, spec: BackboneSpec, network: nn.Module) -> None:
        self.spec = spec
        self._network = network

    @functools.cached_property
    def graphs(self) -> dict[str, TrainedGraph]:
        """Made at the first call: some graphs copy the network's modules, with their switches, onto its weights."""
        wraps = graph_modules(self.spec)
        names = (*request_graphs(self.spec), STEP)
        return {name: TrainedGraph(name, wraps[name].wrap(self._network)) for name in names}

    def __call__(
        self,
        latents: Tensor,
        plucker: Tensor,
        timesteps: Tensor,
        text: TextFeatures,
        condition_latents: Tensor | None = None,
        residuals: Tensor | None = None,
    ) -> Tensor:
        """Prediction for the views of B objects.

        Args:
            latents: [B, V, C, h, w] as the network gets them.
            plucker: [B, V, 6, h, w].
            timesteps: [B] float32.
            text: B rows, the mask on the host.
            condition_latents: [B, C, h, w], for image models only; zeros where the image is dropped.
            residuals: [B, K] of a ControlNet, where the spec has any.

        Returns:
            [B, V, C, h, w].
        """
        given = prepare(self.spec, self.graphs, text, timesteps[:, None])
        inputs = join_rows([given])
        inputs |= {name: values[:, 0] for name, values in given.stepwise.items()}
        inputs |= {"latents": latents, "plucker": plucker, "timesteps": timesteps}
        if condition_latents is not None:
            inputs["condition_latents"] = condition_latents
        if residuals is not None:
            inputs["residuals"] = residuals
        prediction: Tensor = self.graphs[STEP](*(inputs[name] for name in step_input_names(self.spec)))
        return prediction
