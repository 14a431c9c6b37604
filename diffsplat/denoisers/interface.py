"""Common interface of all denoiser families: build the stock network, cut it into graphs."""

import importlib
from typing import Any

from torch import nn

from diffsplat.backbones import BackboneSpec
from diffsplat.denoisers.graph_inputs import FAMILIES, STEP


def build_denoiser(spec: BackboneSpec) -> nn.Module:
    """The stock network of a backbone, for many views, with random weights; official state-dict names."""
    return _module(spec).build_network(spec.denoiser, spec.geometry.views)


def denoiser_graph(name: str, spec: BackboneSpec, network: nn.Module) -> nn.Module:
    """One of the graphs of a network of `build_denoiser`, sharing its weights."""
    if name == STEP and spec.controls:
        from diffsplat.denoisers.controlnet import ControlledDenoiserStep

        return ControlledDenoiserStep(network, spec.geometry.views)
    build = _module(spec).GRAPHS[name]
    return build(network, spec.geometry.views) if name == STEP else build(network)


def _module(spec: BackboneSpec) -> Any:
    """Module of the family; imported when networks are built, since it pulls in diffusers."""
    return importlib.import_module(FAMILIES[spec.family].module)
