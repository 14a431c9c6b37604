"""The exported graphs, in the order in which a request runs them.

    stage    graph                   inputs                                          outputs
    encode   text_encoder (_2, _3)   input_ids [rows, tokens] (, mask)               embeddings [.., D] (, pooled)
    denoise  denoiser_context        embeddings [rows, tokens, D]                    context [rows, tokens, P]
    denoise  denoiser_added          pooled [rows, D'], sizes [rows, 6]              added [rows, E]            SDXL
    denoise  denoiser_modulations    pooled [rows, D'], timesteps [steps]            modulations [rows, steps, M]  SD3
    denoise  denoiser                `graph_inputs.step_input_names`                 prediction [rows, V, C, h, w]
    encode   image_encoder           images [objects, 3, S, S]                       mean, std [.., C, h, w]
    encode   elevest                 images [objects, 3, S, S]                       elevation_deg [objects]
    denoise  hints_TYPE, control_context_TYPE, (control_added_TYPE,) control_TYPE    see `denoisers.control_inputs`
    decode   decoder, tiny_decoder   latents [objects, V, C, h, w]                   grid [objects, V, 12, H, W]
    reconstruct  gsrecon             images [.., V, C, H, W], rays [.., V, 6, H, W]  grid [objects, V, 12, H, W]

A row is one (request, guidance branch). Graphs before the denoiser run once per request, the denoiser at every step,
the decoder once per object. `gsrecon` stands alone: reconstructions run no other graph.
"""

from collections.abc import Mapping

import torch
from diffsplat_client.contract import RECONSTRUCT

from diffsplat.backbones import BackboneSpec, TextEncoderSpec
from diffsplat.backbones.spec import PLUCKER_CHANNELS
from diffsplat.backbones.text import TEXT_ENCODER
from diffsplat.denoisers.control_inputs import residual_numbers
from diffsplat.denoisers.graph_inputs import ADDED, CONTEXT, MODULATIONS, STEP, request_graphs, step_input_names
from diffsplat.geometry.gaussians import GRID_WIDTH
from diffsplat.networks import DECODER, build_graph_module, network_builders, preview_decoder
from diffsplat.splats.gsrecon import GSRECON, gsrecon_config
from export.graph_spec import GraphSpec, TensorAxes
from export.image_graphs import controlnet_graphs, image_graphs

_MANY_STEPS = 5  # length of a sample schedule; arbitrary


def graph_specs(spec: BackboneSpec) -> tuple[GraphSpec, ...]:
    """The graphs of a backbone, in the order in which a request runs them."""
    views, grid = spec.geometry.views, spec.geometry.grid_size
    latents = (views, spec.latent_channels, spec.latent_size, spec.latent_size)
    texts = [
        _text_encoder(name, encoder)
        for name, encoder in zip(spec.text.numbered(TEXT_ENCODER), spec.text.encoders, strict=True)
    ]
    decoders = [
        GraphSpec(
            name,
            "decode",
            (TensorAxes("latents", ("objects", *latents)),),
            (TensorAxes("grid", ("objects", views, GRID_WIDTH, grid, grid)),),
            {"objects": 1},
        )
        for name in dict.fromkeys((DECODER, preview_decoder(spec)))
    ]
    controls = [graph for kind in spec.controls for graph in controlnet_graphs(spec, kind)]
    return (*texts, *image_graphs(spec), *_denoiser_graphs(spec), *controls, *decoders, _gsrecon(spec))


def _gsrecon(spec: BackboneSpec) -> GraphSpec:
    """GSRecon. Rays are computed outside the graph, so that geometry keeps float32 whatever the graph's precision."""
    views, grid, channels = spec.geometry.views, spec.geometry.grid_size, gsrecon_config(spec).image_channels
    inputs = (
        TensorAxes("images", ("objects", views, channels, grid, grid), "colour"),
        TensorAxes("rays", ("objects", views, PLUCKER_CHANNELS, grid, grid), "ray"),
    )
    output = TensorAxes("grid", ("objects", views, GRID_WIDTH, grid, grid))
    return GraphSpec(GSRECON, RECONSTRUCT, inputs, (output,), {"objects": 1})


def _text_encoder(name: str, encoder: TextEncoderSpec) -> GraphSpec:
    inputs = [TensorAxes("input_ids", ("rows", "tokens"), "token")]
    if encoder.masked:
        inputs.append(TensorAxes("mask", ("rows", "tokens"), "mask"))
    outputs = [TensorAxes("embeddings", ("rows", "tokens", encoder.width))]
    if encoder.pooled_width:
        outputs.append(TensorAxes("pooled", ("rows", encoder.pooled_width)))
    sizes = {"rows": 2, "tokens": encoder.max_tokens}
    return GraphSpec(name, "encode", tuple(inputs), tuple(outputs), sizes, token_range=encoder.config["vocab_size"])


def _denoiser_graphs(spec: BackboneSpec) -> list[GraphSpec]:
    """Once per request, then the step. Which graphs and step inputs there are is the family's (`graph_inputs`)."""
    views, latents = spec.geometry.views, (spec.latent_channels, spec.latent_size, spec.latent_size)
    pooled = TensorAxes("pooled", ("rows", spec.text.pooled_width))
    steps = TensorAxes("timesteps", ("steps",), "timestep")
    request_inputs = {
        CONTEXT: (TensorAxes("embeddings", ("rows", "tokens", spec.text.width)),),
        ADDED: (pooled, TensorAxes("sizes", ("rows", 6))),
        MODULATIONS: (pooled, steps),
    }
    outputs = _request_outputs(spec, request_inputs)
    step_inputs = {
        "latents": TensorAxes("latents", ("rows", views, *latents)),
        "plucker": TensorAxes("plucker", ("rows", views, PLUCKER_CHANNELS, *latents[1:])),
        "timesteps": TensorAxes("timesteps", ("rows",), "timestep"),
        "kept": TensorAxes("kept", ("rows", "tokens")),
        "condition_latents": TensorAxes("condition_latents", ("rows", *latents)),
        **{output.name: output for output in outputs.values()},
    }
    if MODULATIONS in outputs:  # those of one step of the schedule
        step_inputs["modulations"] = TensorAxes("modulations", ("rows", outputs[MODULATIONS].axes[-1]))
    if spec.controls:
        step_inputs["residuals"] = TensorAxes("residuals", ("rows", residual_numbers(spec)))
    every_size = {"rows": 2, "tokens": spec.text.tokens, "steps": _MANY_STEPS}

    def graph(name: str, inputs: tuple[TensorAxes, ...], output: TensorAxes) -> GraphSpec:
        free = {axis for tensor in inputs for axis in tensor.axes}
        sizes = {axis: length for axis, length in every_size.items() if axis in free}
        times = spec.schedule.num_train_timesteps
        return GraphSpec(name, "denoise", inputs, (output,), sizes, timestep_range=times)

    prediction = TensorAxes("prediction", ("rows", views, *latents))
    step = graph(STEP, tuple(step_inputs[name] for name in step_input_names(spec)), prediction)
    return [*(graph(name, request_inputs[name], output) for name, output in outputs.items()), step]


def _request_outputs(spec: BackboneSpec, inputs: Mapping[str, tuple[TensorAxes, ...]]) -> dict[str, TensorAxes]:
    """Graph that runs once per request -> its output, whose width is read off the network, built without weights."""
    names_and_axes = {
        CONTEXT: ("context", "rows", "tokens"),
        ADDED: ("added", "rows"),
        MODULATIONS: ("modulations", "rows", "steps"),
    }
    outputs = {}
    with torch.device("meta"):
        network = network_builders(spec)["denoiser"]()
        for name in request_graphs(spec):
            samples = (torch.empty([axis if isinstance(axis, int) else 1 for axis in t.axes]) for t in inputs[name])
            width = build_graph_module(name, spec, network)(*samples).shape[-1]
            tensor, *free = names_and_axes[name]
            outputs[name] = TensorAxes(tensor, (*free, width))
    return outputs
