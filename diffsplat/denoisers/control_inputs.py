"""Control maps in the denoise loop: what a request computes once, and the residuals of every step.

    hint, text -> prepare_control -> ControlInputs                 once per request
    ControlInputs of several requests -> join_controls             when requests join or leave
    network input, ControlBatch -> add_residuals -> [R, K]         every step

`prepare_control` takes tensors of the host; all that comes of it lies on the device of the graphs. Runs exported graphs
as well as modules, and imports neither diffusers nor transformers; the networks are in `controlnet`. Axes: R rows
(request, guidance branch), V views, N residuals, K numbers of all residuals of a row.

A ControlNet has its own graphs, named after its type: hints_TYPE, control_context_TYPE, (control_added_TYPE for SDXL,)
control_TYPE.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffsplat.backbones import BackboneSpec
from diffsplat.backends.transfer import to_device
from diffsplat.denoisers.buckets import Buckets
from diffsplat.denoisers.graph_inputs import size_numbers, takes_pooled_text
from diffsplat.graph import Graph
from diffsplat.text.features import TextFeatures


@dataclass(frozen=True)
class ControlInputs:
    """Inputs of a ControlNet that a request computes once. In guess mode they have only the conditional row."""

    kind: str
    constant: dict[str, Tensor]  # name -> [rows, ...]
    guess_mode: bool


def control_graphs(spec: BackboneSpec, kind: str) -> tuple[str, ...]:
    """Graphs of one ControlNet: hints, its text context, (SDXL) its added embedding, and last its step."""
    added = (f"control_added_{kind}",) if takes_pooled_text(spec) else ()
    return (f"hints_{kind}", f"control_context_{kind}", *added, f"control_{kind}")


def prepare_control(
    spec: BackboneSpec,
    graphs: Mapping[str, Graph],
    kind: str,
    features: TextFeatures,
    hint: Tensor,
    scale: float,
    guess_mode: bool,
) -> ControlInputs:
    """Everything about a control map that does not change from step to step.

    Args:
        spec: the backbone.
        graphs: those of `control_graphs`.
        kind: of the map.
        features: text of the request's rows, (unconditional, conditional) or the conditional one, on the host.
        hint: [3, H, W] in [0, 1], for view 0, on the host.
        scale: factor on all residuals.
        guess_mode: the map steers only the conditional row, weakly in the first layers and fully in the mid block.
    """
    rows = slice(-1, None) if guess_mode else slice(None)
    text = TextFeatures(*(values[rows] for values in features))
    count = len(text.embeddings)

    def run(name: str, *inputs: Tensor) -> Tensor:
        graph = graphs[f"{name}_{kind}"]
        output: Tensor = graph(*(to_device(tensor, graph.device) for tensor in inputs))
        return output

    hints = run("hints", hint[None])  # [1, V, C, h, w]
    scales = control_scales(len(residual_shapes(spec.denoiser, 8, 8)), scale, guess_mode)
    constant = {
        "context": run("control_context", text.embeddings),
        "hints": hints.expand(count, -1, -1, -1, -1),
        "scales": to_device(scales, hints.device).expand(count, -1),
    }
    if takes_pooled_text(spec):
        constant["added"] = run("control_added", text.pooled, size_numbers(count, spec.image_size))
    return ControlInputs(kind, constant, guess_mode)


class ControlBatch(NamedTuple):
    """The ControlNets of a batch whose requests stay the same, and where their residuals belong."""

    kinds: dict[str, "_KindRows"]  # by control map
    rows: tuple[tuple[str | None, int], ...]  # in the batch's order: (kind, how many rows); None: rows without a map
    zeros: Tensor  # [R, K], kept from step to step: megabytes that would otherwise be cleared every time


class _KindRows(NamedTuple):
    spans: tuple[tuple[int, int], ...]  # first row and end of each controlled part of the batch, padding last
    constant: tuple[Tensor, ...]  # inputs of the ControlNet after the timesteps, one row for each of the spans'


def join_controls(
    spec: BackboneSpec,
    controls: Sequence[ControlInputs | None],
    row_counts: Sequence[int],
    like: Tensor,
    buckets: Buckets | None = None,
) -> ControlBatch:
    """Control maps of several requests as one batch.

    Args:
        spec: the backbone.
        controls: one per request, None without a control map.
        row_counts: rows of each request, the conditional one last.
        like: [R, ...] an input of the denoiser, padding rows included; residuals get its rows and device.
        buckets: to which a ControlNet's own batch is padded.
    """
    parts: dict[str, list[tuple[ControlInputs, int, int]]] = {}
    rows: list[tuple[str | None, int]] = []
    end = 0
    for control, count in zip(controls, row_counts, strict=True):
        end += count
        controlled = 0 if control is None else 1 if control.guess_mode else count
        if control is not None:
            parts.setdefault(control.kind, []).append((control, end - controlled, end))
        owner = control.kind if control is not None else None
        rows += [(None, count - controlled), (owner, controlled)]
    rows.append((None, len(like) - end))  # padding
    kinds = {}
    for kind, given in parts.items():
        spans = [(first, last) for _, first, last in given]
        constant = [torch.cat([part.constant[name] for part, _, _ in given]) for name in given[0][0].constant]
        if buckets is not None:
            spare = buckets.pad_rows(len(constant[0])) - len(constant[0])
            constant = [torch.cat([values, *[values[:1]] * spare]) for values in constant]
            spans += [(spans[0][0], spans[0][0] + 1)] * spare
        kinds[kind] = _KindRows(tuple(spans), tuple(constant))
    zeros = like.new_zeros(len(like), residual_numbers(spec))
    return ControlBatch(kinds, tuple((kind, count) for kind, count in rows if count), zeros)


def add_residuals(graphs: Mapping[str, Graph], batch: ControlBatch, inputs: Mapping[str, Tensor]) -> Tensor:
    """Residuals of a batch [R, K], which the caller must not change; uncontrolled rows are zeros, which add nothing.

    Args:
        graphs: those of `control_graphs`.
        batch: of the requests.
        inputs: the denoiser's latents, plucker and timesteps, all rows.
    """
    if not batch.kinds:
        return batch.zeros
    residuals, used = {}, dict.fromkeys(batch.kinds, 0)
    for kind, (spans, constant) in batch.kinds.items():
        moving = [
            torch.cat([inputs[name][first:end] for first, end in spans]) for name in ("latents", "plucker", "timesteps")
        ]
        residuals[kind] = graphs[f"control_{kind}"](*moving, *constant)
    parts = []
    for owner, count in batch.rows:
        if owner is None:
            parts.append(batch.zeros[:count])
        else:
            parts.append(residuals[owner][used[owner] : used[owner] + count])
            used[owner] += count
    return torch.cat(parts)


def residual_numbers(spec: BackboneSpec) -> int:
    """K: how many numbers the residuals of a row have in all."""
    shapes = residual_shapes(spec.denoiser, spec.latent_size, spec.latent_size)
    return spec.geometry.views * sum(channels * height * width for channels, height, width in shapes)


def control_scales(residuals: int, scale: float, guess_mode: bool) -> Tensor:
    """Factor of every residual, the mid block's last: [N] float32.

    In guess mode they rise from 0.1 to 1 times `scale`, and the ControlNet runs only for the conditional rows; the
    unconditional rows get zeros.
    """
    if guess_mode:
        return torch.logspace(-1, 0, residuals) * scale
    return torch.full((residuals,), float(scale))


def residual_shapes(config: Mapping[str, Any], height: int, width: int) -> list[tuple[int, int, int]]:
    """(channels, height, width) of every residual of a view: the input, all down layers, the mid block.

    Args:
        config: of the UNet or of its ControlNet.
        height: of the latents.
        width: of the latents.
    """
    channels, layers = config["block_out_channels"], config["layers_per_block"]
    layers = [layers] * len(channels) if isinstance(layers, int) else layers
    shapes = [(channels[0], height, width)]
    for i, (width_out, count) in enumerate(zip(channels, layers, strict=True)):
        shapes += [(width_out, height, width)] * count
        if i < len(channels) - 1:
            height, width = (height + 1) // 2, (width + 1) // 2
            shapes.append((width_out, height, width))
    return [*shapes, (channels[-1], height, width)]
