"""Counted work beside the performance table: figures, bars, and the printed table."""

from collections.abc import Mapping
from typing import Any

from benchmarks.flops.counter import Work
from benchmarks.flops.reference import BAR_PROMPT_TOKENS, BARS, reference
from benchmarks.flops.stages import Request, Settings, Stage
from diffsplat.denoisers.graph_inputs import STEP

_RUNS = {"request": "request", "step": "step", "option": "if asked", "apart": "apart"}


def figures(backbone: str, counted: Mapping[str, Stage], request: Request, settings: Settings) -> dict[str, Any]:
    """Everything about one backbone, in plain JSON types."""
    table = reference(backbone)
    values: dict[str, Any] = {"steps": settings.steps, "stages": {}}
    for name, stage in counted.items():
        row = {"runs": stage.runs, **_work(stage.counted.work), "parameters": stage.counted.parameter_count}
        if name in table:
            row |= {"table_tflop": table[name].tflop, "ratio": row["tflop"] / table[name].tflop}
            row |= {} if table[name].roofline_ms is None else {"table_roofline_ms": table[name].roofline_ms}
        values["stages"][name] = row
    values["request"] = _work(request.total)
    values["denoiser"] = {
        **_work(request.denoiser),
        "once_tflop": request.once.flops / 1e12,
        "parameters_read_once_and_in_steps": request.read_twice,
    }
    if STEP in table:
        fixed = table[STEP].tflop * settings.steps
        values["denoiser"] |= {"table_tflop": fixed, "ratio": values["denoiser"]["tflop"] / fixed}
    if backbone in BARS and settings.prompt_tokens <= BAR_PROMPT_TOKENS:
        values["denoiser"]["bar"] = BARS[backbone]
    return values


def missed(values: Mapping[str, Any]) -> list[str]:
    """The bars that one backbone misses."""
    denoiser, misses = values["denoiser"], []
    if "bar" in denoiser and denoiser["ratio"] > denoiser["bar"]:
        misses.append(f"denoiser over the table {denoiser['ratio']:.4f}, bar {denoiser['bar']}")
    if denoiser["parameters_read_once_and_in_steps"]:
        read = denoiser["parameters_read_once_and_in_steps"] / 1e6
        misses.append(f"{read:.1f} M parameters of the part before the steps are read at every step again")
    return misses


def text(backbone: str, values: Mapping[str, Any]) -> str:
    """The printed table of one backbone."""
    lines = [
        f"{backbone:24} {'runs':9} {'TFLOP':>9} {'table':>8} {'ratio':>7} {'GB':>7} {'M param.':>9} {'products':>9} "
        f"{'limit ms':>9} {'table':>6}"
    ]
    for name, row in values["stages"].items():
        lines.append(
            f"  {name:22} {_RUNS[row['runs']]:9} {row['tflop']:9.4f} {_cell(row, 'table_tflop', '8.3f')} "
            f"{_cell(row, 'ratio', '7.3f')} {row['bytes'] / 1e9:7.2f} {row['parameters'] / 1e6:9.1f} "
            f"{row['products']:9} {row['roofline_ms']:9.3f} {_cell(row, 'table_roofline_ms', '6.2f')}".rstrip()
        )
    denoiser, steps = values["denoiser"], values["steps"]
    for name, row in ((f"denoiser, {steps} steps", denoiser), ("request without options", values["request"])):
        lines.append(
            f"  {name:22} {'':9} {row['tflop']:9.4f} {_cell(row, 'table_tflop', '8.3f')} "
            f"{_cell(row, 'ratio', '7.3f')} {row['bytes'] / 1e9:7.2f} {'':9} {row['products']:9} "
            f"{row['roofline_ms']:9.3f}"
        )
    once, step = denoiser["once_tflop"], values["stages"][STEP]
    lines.append(
        f"  once per request {once:.4f} TFLOP; a step reads {step['parameters'] / 1e6:.1f} M parameters, "
        f"{denoiser['parameters_read_once_and_in_steps'] / 1e6:.1f} M of them read before already"
    )
    if "bar" in denoiser:
        lines.append(f"  denoiser over the table {denoiser['ratio']:.4f}, bar {denoiser['bar']}")
    lines += [f"  MISSED: {miss}" for miss in missed(values)]
    return "\n".join(lines)


def _work(work: Work) -> dict[str, Any]:
    return {
        "tflop": work.flops / 1e12,
        "bytes": work.bytes,
        "products": work.products,
        "roofline_ms": round(work.roofline_s * 1e3, 4),
    }


def _cell(row: Mapping[str, Any], name: str, form: str) -> str:
    width = int(form.split(".")[0])
    return format(row[name], form) if name in row else " " * width
