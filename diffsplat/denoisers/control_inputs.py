"""Control maps in the denoise loop: what a request computes once, and the residuals of every step.

    hint, text -> prepare_control -> ControlInputs                 once per request
    network input, ControlInputs -> residuals of a row [K]         every step

Runs exported graphs as well as modules, and imports neither diffusers nor transformers; the networks are in
`controlnet`. Axes: R rows (request, guidance branch), V views, N residuals, K numbers of all residuals of a row.

A ControlNet has its own graphs, named after its type: hints_TYPE, control_context_TYPE, (control_added_TYPE for SDXL,)
control_TYPE.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from diffsplat.backbones import BackboneSpec
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
        features: text of the request's rows, (unconditional, conditional) or the conditional one.
        hint: [3, H, W] in [0, 1], for view 0.
        scale: factor on all residuals.
        guess_mode: the map steers only the conditional row, weakly in the first layers and fully in the mid block.
    """
    rows = slice(-1, None) if guess_mode else slice(None)
    text = TextFeatures(*(values[rows] for values in features))
    count = len(text.embeddings)
    hints = graphs[f"hints_{kind}"](hint[None])  # [1, V, C, h, w]
    constant = {
        "context": graphs[f"control_context_{kind}"](text.embeddings),
        "hints": hints.expand(count, -1, -1, -1, -1),
        "scales": control_scales(len(residual_shapes(spec.denoiser, 8, 8)), scale, guess_mode).expand(count, -1),
    }
    if takes_pooled_text(spec):
        constant["added"] = graphs[f"control_added_{kind}"](text.pooled, size_numbers(count, spec.image_size))
    return ControlInputs(kind, constant, guess_mode)


def add_residuals(
    spec: BackboneSpec,
    graphs: Mapping[str, Graph],
    controls: Sequence[ControlInputs | None],
    row_counts: Sequence[int],
    inputs: Mapping[str, Tensor],
) -> Tensor:
    """Residuals of a batch [R, K], which the caller must not change; uncontrolled rows are zeros, which add nothing.

    Args:
        spec: the backbone.
        graphs: those of `control_graphs`.
        controls: one per request, None without a control map.
        row_counts: rows of each request, the conditional one last.
        inputs: the denoiser's latents, plucker and timesteps, all rows.
    """
    ends = list(accumulate(row_counts))
    kinds = dict.fromkeys(control.kind for control in controls if control is not None)
    if not kinds:
        return _no_residuals(ends[-1], residual_numbers(spec))
    residuals = torch.zeros(ends[-1], residual_numbers(spec))
    for kind in kinds:
        rows: list[int] = []
        parts: list[ControlInputs] = []
        for control, count, end in zip(controls, row_counts, ends, strict=True):
            if control is not None and control.kind == kind:
                rows += range(end - (1 if control.guess_mode else count), end)
                parts.append(control)
        names = list(parts[0].constant)
        constant = [torch.cat([part.constant[name] for part in parts]) for name in names]
        moving = [inputs[name][rows] for name in ("latents", "plucker", "timesteps")]
        residuals[rows] = graphs[f"control_{kind}"](*moving, *constant)
    return residuals


@lru_cache(maxsize=1)
def _no_residuals(rows: int, numbers: int) -> Tensor:
    """Zeros [R, K], kept from step to step: megabytes that would otherwise be allocated and cleared every time."""
    return torch.zeros(rows, numbers)


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
