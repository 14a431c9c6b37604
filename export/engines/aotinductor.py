"""AOTInductor: torch's compiler, run at export. It takes minutes for a UNet, and needs a C++ compiler (g++)."""

import inspect
import json
import warnings
from inspect import Parameter
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler
from torch.export import Dim, ExportedProgram

from diffsplat.backends.aotinductor import target_of, target_path
from export.common import ExportError
from export.engines.job import BuildJob
from export.engines.signature import graph_signature
from export.graph_spec import GraphSpec

TRACED_BATCH = 3  # of the sizes 0 and 1 torch makes constants
_CONFIG = {"cpp.dynamic_threads": True}  # as many threads as the process that loads it is given


def build(job: BuildJob) -> list[Path]:
    """Compile the module: `<graph>.pt2` for free sizes, its signature, and what it was compiled for.

    Raises:
        ExportError: there is no C++ compiler, or torch cannot compile the graph.
    """
    graph, folder = job.graph, job.folder
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise ExportError(f"graph {graph.name!r}: aotinductor compiles with g++, which is not installed here") from None
    path = folder / f"{graph.name}.pt2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = _trace(graph, job.module, job.device)
        try:
            torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=_CONFIG)
        except RuntimeError as error:
            raise ExportError(f"graph {graph.name!r}: aotinductor cannot compile it: {error}") from None
    target = target_path(folder, graph.name)
    target.write_text(json.dumps(target_of(job.device), indent=2) + "\n", encoding="utf-8")
    signature = graph_signature(graph, _largest_sizes(graph, program))
    return [path, signature.write(folder), target]


def _trace(graph: GraphSpec, module: nn.Module, device: torch.device) -> ExportedProgram:
    sizes = {**{axis: max(2, size) for axis, size in graph.serving_sizes.items()}, graph.batch_axis: TRACED_BATCH}
    inputs = tuple(tensor.to(device) for tensor in graph.sample_inputs(sizes))
    shapes: tuple[Any, ...] = tuple(
        {i: Dim.DYNAMIC for i, axis in enumerate(each.axes) if isinstance(axis, str)} for each in graph.inputs
    )
    kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
    if Parameter.VAR_POSITIONAL in kinds:  # all inputs of `*inputs` have one name, and so one entry
        named = kinds.index(Parameter.VAR_POSITIONAL)
        shapes = (*shapes[:named], shapes[named:])
    try:
        with torch.no_grad():
            return torch.export.export(module, inputs, dynamic_shapes=shapes, strict=False)
    except (RuntimeError, ValueError) as error:
        raise ExportError(f"graph {graph.name!r}: torch.export cannot trace it: {error}") from None


def _largest_sizes(graph: GraphSpec, program: ExportedProgram) -> dict[str, int]:
    """Free axes that the traced code limits; diffusers' upsampling, for one, has another branch from 64 views on."""
    largest = {}
    nodes: dict[str, Any] = {node.name: node for node in program.graph.nodes}
    for tensor, name in zip(graph.inputs, program.graph_signature.user_inputs, strict=True):
        for axis, size in zip(tensor.axes, nodes[str(name)].meta["val"].shape, strict=True):
            if isinstance(axis, str):
                if isinstance(size, int):
                    raise ExportError(f"graph {graph.name!r}: torch.export made axis {axis} of {tensor.name} constant")
                upper = program.range_constraints[size.node.expr].upper
                if upper.is_Integer:
                    largest[axis] = int(upper)
    return largest
