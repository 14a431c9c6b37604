"""One graph to be built for one back end: what `build` of every module in this folder takes."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from diffsplat.graph import Precision
from export.graph_spec import GraphSpec


@dataclass(frozen=True)
class BuildJob:
    """What to build, from what, and where to."""

    graph: GraphSpec
    module: nn.Module  # the graph's, on `device` in `precision`; its inputs and outputs are float32
    folder: Path  # takes the files that `load` of the back end reads
    precision: Precision
    onnx: Callable[[Precision], list[Path]]  # the graph's ONNX file and that of its weights, written when asked for
    device: torch.device

    def link_onnx(self, precision: Precision) -> list[Path]:
        """The ONNX files in `folder`."""
        files = []
        for path in self.onnx(precision):
            files.append(self.folder / path.name)
            os.link(path, files[-1])
        return files
