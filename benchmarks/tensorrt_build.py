"""TensorRT engines of full-size graphs, built without a card from random weights.

    python -m benchmarks.tensorrt_build [NAME ...] [--compute-capability 8.9] [--again] [--json PATH]

Every graph is built in a process of its own: network in half precision, ONNX file, engine with one profile for all
batches of the service (several would choose kernels for each). The table has nodes of the ONNX file, layers and size of
the engine, seconds, CPU seconds and the peak memory of the process, or the reason why there is no engine. Each row is
kept as soon as it is there, and a finished row is not built again. bf16, because a CPU without fp16 instructions needs
minutes to trace one convolution in it.
"""

import argparse
import dataclasses
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.machine import describe_machine
from diffsplat.backbones.spec import ControlType
from diffsplat.graph import Precision

PRECISION: Precision = "bf16"
TIMEOUT_S = 3600
_BLOCK = 1 << 22  # random numbers that are made once and written again and again


@dataclass(frozen=True)
class Row:
    """One graph of one backbone.

    Attributes:
        backbone: of the table.
        graph: of its graphs.
        control: type of the ControlNet beside it.
        blocks: how many of a text encoder's blocks are built; 0: all.
    """

    backbone: str
    graph: str
    control: ControlType | Literal[""] = ""
    blocks: int = 0

    @property
    def name(self) -> str:
        """Its name on the command line and in the table."""
        parts = (self.backbone, f"with ControlNet {self.control}" if self.control else "", self.graph)
        return " ".join((*filter(None, parts), *([f"({self.blocks} block)"] if self.blocks else [])))


ROWS = (
    Row("sd15", "text_encoder"),
    Row("sd15", "denoiser_context"),
    Row("sd15", "denoiser"),
    Row("sd15", "decoder"),
    Row("sd15_image", "denoiser"),
    Row("sd15", "denoiser", control="canny"),
    Row("sd15", "hints_canny", control="canny"),
    Row("sd15", "control_context_canny", control="canny"),
    Row("sd15", "control_canny", control="canny"),
    Row("pixart_sigma", "text_encoder", blocks=1),  # T5-XXL: 9.5 GB of weights in half precision, 24 such blocks
    Row("pixart_sigma", "denoiser_context"),
    Row("pixart_sigma", "denoiser"),
    Row("pixart_sigma", "decoder"),
    Row("sd35", "text_encoder"),
    Row("sd35", "text_encoder_2"),
    Row("sd35", "denoiser_context"),
    Row("sd35", "denoiser_modulations"),
    Row("sd35", "decoder"),
    Row("sd35", "denoiser"),
)


def build_row(row: Row, capability: str, folder: Path) -> dict[str, Any]:
    """Export and build one graph below `folder`; returns its figures."""
    import onnx

    from diffsplat.networks import build_graph_module, served_precision
    from export.engines.cache import EngineCache
    from export.engines.profiles import Limits
    from export.engines.tensorrt import build_engine, find_target
    from export.graphs import graph_specs
    from export.to_onnx import write_onnx

    spec = _spec(row)
    (graph,) = (graph for graph in graph_specs(spec) if graph.name == row.graph)
    owner = graph.network(spec)
    network = random_network(spec, owner)
    module = build_graph_module(graph.name, spec, network, served_precision(owner, PRECISION))
    parameters = sum(parameter.numel() for parameter in module.parameters())
    started = time.monotonic()
    files = write_onnx(graph, module, folder / f"{graph.name}.onnx")
    export_s = time.monotonic() - started
    del module, network
    nodes = len(onnx.load(str(files[0]), load_external_data=False).graph.node)
    target = find_target([capability], PRECISION, graph.name)
    limits = Limits(steps=spec.steps, first_rows=8)
    built = build_engine(graph, files, PRECISION, target, limits, EngineCache(folder / "engines"), _print_progress)
    return {
        "parameters": parameters,
        "nodes": nodes,
        "layers": built.info.layers,
        "onnx_mb": round(sum(path.stat().st_size for path in files) / 1e6, 1),
        "engine_mb": round(built.info.file["bytes"] / 1e6, 1),
        "profiles": len(built.info.profiles),
        "export_s": round(export_s, 1),
        "build_s": round(built.info.build_s, 1),
    }


def _print_progress(done: float) -> None:
    if sys.stderr.isatty():
        print(f"\r  building, {100 * done:3.0f} %", end="", file=sys.stderr, flush=True)


def _spec(row: Row) -> Any:
    from diffsplat.backbones import BACKBONES

    spec = BACKBONES[row.backbone]
    if row.control:
        spec = dataclasses.replace(spec, controls=(row.control,))
    if row.blocks:
        encoders = tuple(
            dataclasses.replace(each, config={**each.config, "num_layers": row.blocks}) for each in spec.text.encoders
        )
        spec = dataclasses.replace(spec, text=dataclasses.replace(spec.text, encoders=encoders))
    return spec


def random_network(spec: Any, name: str) -> Any:
    """A network in half precision with random weights; parameters are never held in float32, nor initialised."""
    import torch

    from diffsplat.backends.precision import cast_network
    from diffsplat.networks import FLOAT32_PARTS, network_builders, served_precision

    with _parameters_on_meta():
        network = network_builders(spec)[name]()
    cast_network(network, served_precision(name, PRECISION), FLOAT32_PARTS.get(name, ()))
    block = torch.randn(2 * _BLOCK, generator=torch.Generator().manual_seed(0)) * 0.02
    blocks = {torch.float32: block, torch.bfloat16: block.bfloat16()}
    filled: dict[int, torch.nn.Parameter] = {}  # tied weights stay tied
    for module in network.modules():
        for key, parameter in list(module._parameters.items()):
            if parameter is not None and parameter.is_meta:
                if id(parameter) not in filled:
                    numbers = torch.empty(parameter.shape, dtype=parameter.dtype)
                    first = 9973 * len(filled) % _BLOCK  # tracing merges equal weights
                    for piece in numbers.view(-1).split(_BLOCK):
                        piece.copy_(blocks[parameter.dtype][first : first + len(piece)])
                    filled[id(parameter)] = torch.nn.Parameter(numbers, requires_grad=False)
                module._parameters[key] = filled[id(parameter)]
    return network.eval().requires_grad_(False)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Modules that are built here get parameters without memory; their buffers, such as position tables, are real."""
    import torch

    register = torch.nn.Module.register_parameter

    def register_on_meta(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        register(module, name, parameter)
        if parameter is not None and not parameter.is_meta:
            module._parameters[name] = torch.nn.Parameter(parameter.detach().to("meta"), requires_grad=False)

    torch.nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register  # type: ignore[method-assign]


def _run_child(row: Row, capability: str) -> dict[str, Any]:
    """Figures of a row from a process of its own, or the reason why there are none."""
    command = [sys.executable, "-m", "benchmarks.tensorrt_build", "--row", row.name, "--compute-capability", capability]
    with tempfile.TemporaryDirectory(prefix="tensorrt-build-") as folder:
        try:
            run = subprocess.run([*command, "--folder", folder], stdout=subprocess.PIPE, text=True, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return {"reason": f"no engine after {TIMEOUT_S} s"}
    if run.returncode < 0:
        return {"reason": f"ended by signal {-run.returncode}" + (", out of memory" if run.returncode == -9 else "")}
    try:
        values: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        return {"reason": f"failed with exit code {run.returncode}, see its output"}
    return values


def _child(row: Row, capability: str, folder: Path) -> int:
    from export.common import ExportError

    try:
        figures = build_row(row, capability, folder)
    except (ExportError, MemoryError) as error:
        figures = {"reason": " ".join(str(error).split())[:300]}
    usage = resource.getrusage(resource.RUSAGE_SELF)
    figures["peak_gb"] = round(usage.ru_maxrss * 1024 / 1e9, 2)
    figures["cpu_s"] = round(usage.ru_utime + usage.ru_stime, 1)  # of the whole row, whatever else the machine does
    print(json.dumps(figures))
    return 0


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures as a Markdown table."""
    head = (
        "graph",
        "parameters, M",
        "nodes",
        "layers",
        "ONNX MB",
        "engine MB",
        "export s",
        "build s",
        "CPU s",
        "peak GB",
    )
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for name, row in rows.items():
        if "reason" in row:
            lines.append(f"| {name} | not built: {row['reason']}" + " |" * (len(head) - 1))
            continue
        if row["profiles"] > 1:
            name += f", {row['profiles']} profiles"
        counts = (f"{row['parameters'] / 1e6:.0f}", f"{row['nodes']:,}", f"{row['layers']:,}")
        sizes = (f"{row['onnx_mb']:,.0f}", f"{row['engine_mb']:,.0f}")
        cpu = f"{row['cpu_s']:.0f}" if "cpu_s" in row else "-"  # older rows have none
        others = (f"{row['export_s']:.0f}", f"{row['build_s']:.0f}", cpu, f"{row['peak_gb']:.1f}")
        lines.append("| " + " | ".join((name, *counts, *sizes, *others)) + " |")
    return "\n".join(lines)


def main() -> int:
    """Build the rows that are missing, keep each, print the table; the exit code counts rows without an engine."""
    names = {row.name: row for row in ROWS}
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tensorrt_build", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"rows (default: all): {'; '.join(names)}")
    parser.add_argument("--compute-capability", default="8.9", metavar="X.Y", help="of the card (default: 8.9)")
    parser.add_argument("--again", action="store_true", help="build rows that are finished, too")
    parser.add_argument("--json", type=Path, help="where the figures are kept; finished rows in it are not built again")
    parser.add_argument("--row", help=argparse.SUPPRESS)  # the process of one row
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        return _child(names[options.row], options.compute_capability, options.folder)
    if unknown := [name for name in options.names if name not in names]:
        parser.error(f"unknown row {unknown[0]!r}: choose from {'; '.join(names)}")
    kept: dict[str, Any] = {}
    if options.json and options.json.is_file():
        kept = json.loads(options.json.read_text())["tensorrt_build"]["rows"]
    for name in options.names or names:
        if name in kept and "reason" not in kept[name] and not options.again:
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        kept[name] = _run_child(names[name], options.compute_capability)
        print(f"{name}: {kept[name]}", file=sys.stderr, flush=True)
        if options.json:
            rows = {each: kept[each] for each in names if each in kept}  # in the order of the table
            about = {"precision": PRECISION, "compute_capability": options.compute_capability, "rows": rows}
            options.json.write_text(json.dumps({**describe_machine(), "tensorrt_build": about}, indent=2) + "\n")
    print(table({each: kept[each] for each in names if each in kept}))
    return sum("reason" in kept[name] for name in options.names or names)


if __name__ == "__main__":
    sys.exit(main())
