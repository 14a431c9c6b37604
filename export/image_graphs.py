"""Graphs that process images: condition image, elevation, ControlNets."""

import torch

from diffsplat.backbones import BackboneSpec
from diffsplat.backbones.spec import PLUCKER_CHANNELS
from diffsplat.denoisers.control_inputs import control_graphs, residual_numbers, residual_shapes
from diffsplat.images.elevest import elevest_config
from diffsplat.networks import build_graph_module, network_builders
from export.graph_spec import GraphSpec, TensorAxes


def image_graphs(spec: BackboneSpec) -> list[GraphSpec]:
    """Graphs of `encode` for a user's image."""
    graphs, grid, latent = [], spec.geometry.grid_size, spec.latent_size
    moments = ("objects", spec.latent_channels, latent, latent)
    if spec.image_encoder:
        images = TensorAxes("images", ("objects", 3, grid, grid))
        outputs = (TensorAxes("mean", moments), TensorAxes("std", moments))
        graphs.append(GraphSpec("image_encoder", "encode", (images,), outputs, {"objects": 1}))
    if spec.elevest is not None:
        size = elevest_config(spec.elevest).input_size
        images = TensorAxes("images", ("objects", 3, size, size))
        graphs.append(
            GraphSpec("elevest", "encode", (images,), (TensorAxes("elevation_deg", ("objects",)),), {"objects": 1})
        )
    return graphs


def controlnet_graphs(spec: BackboneSpec, kind: str) -> list[GraphSpec]:
    """Graphs of a ControlNet: those that run once per request, then its step."""
    views, size = spec.geometry.views, spec.latent_size
    names = control_graphs(spec, kind)
    with torch.device("meta"):
        network = network_builders(spec)[f"controlnet_{kind}"]()
        modules = {name: build_graph_module(name, spec, network) for name in names}
        context_width = modules[names[1]](torch.empty(1, 1, spec.text.width)).shape[-1]
        hints = modules[names[0]](torch.empty(1, 3, spec.hint_size, spec.hint_size)).shape[2:]
        added = (
            modules[names[2]](torch.empty(1, spec.text.pooled_width), torch.empty(1, 6)) if len(names) == 4 else None
        )
    text = TensorAxes("embeddings", ("rows", "tokens", spec.text.width))
    context = TensorAxes("context", ("rows", "tokens", context_width))
    maps = TensorAxes("hint", ("objects", 3, spec.hint_size, spec.hint_size))
    hint_maps = TensorAxes("hints", ("rows", views, *hints))
    both = {"rows": 2, "tokens": spec.text.tokens}
    graphs = [
        GraphSpec(names[0], "denoise", (maps,), (TensorAxes("hints", ("objects", views, *hints)),), {"objects": 1}),
        GraphSpec(names[1], "denoise", (text,), (context,), both),
    ]
    inputs = [
        TensorAxes("latents", ("rows", views, spec.latent_channels, size, size)),
        TensorAxes("plucker", ("rows", views, PLUCKER_CHANNELS, size, size)),
        TensorAxes("timesteps", ("rows",), "timestep"),
        context,
        hint_maps,
        TensorAxes("scales", ("rows", len(residual_shapes(spec.denoiser, size, size)))),
    ]
    if added is not None:
        pooled = TensorAxes("pooled", ("rows", spec.text.pooled_width))
        output = TensorAxes("added", ("rows", added.shape[-1]))
        graphs.append(
            GraphSpec(names[2], "denoise", (pooled, TensorAxes("sizes", ("rows", 6))), (output,), {"rows": 2})
        )
        inputs.append(output)
    residuals = TensorAxes("residuals", ("rows", residual_numbers(spec)))
    times = spec.schedule.num_train_timesteps
    graphs.append(GraphSpec(names[-1], "denoise", tuple(inputs), (residuals,), both, timestep_range=times))
    return graphs
