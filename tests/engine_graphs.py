"""ONNX files of very small graphs with random weights, from which tests build TensorRT engines."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from diffsplat.backbones import BackboneSpec
from diffsplat.backends.precision import cast_network
from diffsplat.graph import Precision
from diffsplat.networks import FLOAT32_PARTS, build_graph_module, network_builders, served_precision
from export.graph_spec import GraphSpec
from export.to_onnx import write_onnx
from tests.families import family_spec


def one_block_unet() -> BackboneSpec:
    """SD1.5 with one block on each side: TensorRT takes half a minute for a UNet of two levels."""
    spec = family_spec("sd15")
    config = {"block_out_channels": [8], "down_block_types": ["CrossAttnDownBlock2D"], "mid_block_type": None}
    config |= {"up_block_types": ["CrossAttnUpBlock2D"], "attention_head_dim": 2}
    return dataclasses.replace(spec, denoiser={**spec.denoiser, **config})


def write_graph(spec: BackboneSpec, graph: GraphSpec, precision: Precision, folder: Path) -> tuple[list[Path], Any]:
    """The ONNX file of a graph with random weights, and the precision that it has."""
    owner = graph.network(spec)
    has = served_precision(owner, precision)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = network_builders(spec)[owner]()
    cast_network(network, has, FLOAT32_PARTS.get(owner, ()))
    module = build_graph_module(graph.name, spec, network.eval().requires_grad_(False), has)
    return write_onnx(graph, module, folder / f"{graph.name}.onnx"), has
