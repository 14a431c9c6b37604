"""The CPU path as one differentiable torch operation."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsplat.rasterize import cpu, kernels_backward, kernels_blend, kernels_project_backward
from diffsplat.rasterize.cpu import FloatArray, Frame, Prepared, Scratch, View

UPPER_ROWS, UPPER_COLUMNS = [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]


def as_array(tensor: Tensor) -> FloatArray:
    """Float32 C-contiguous array; shares memory where the tensor already is one."""
    return np.ascontiguousarray(tensor.detach().numpy())


def upper_triangle(covars: Tensor) -> FloatArray:
    """[N, 3, 3] -> [N, 6]."""
    return as_array(covars)[:, UPPER_ROWS, UPPER_COLUMNS].copy()


class Rasterize(torch.autograd.Function):
    """Forward keeps, per camera, the records, the tile lists and the composited sums; backward walks them again.

    Each thread owns the sums over its cameras, so gradients repeat bit for bit at a given number of threads.
    """

    @staticmethod
    def forward(
        ctx: Any,
        means: Tensor,  # [N, 3]
        quats: Tensor | None,  # [N, 4]
        scales: Tensor | None,  # [N, 3]
        opacities: Tensor,  # [N]
        colors: Tensor,  # [N, 3]
        covars: Tensor | None,  # [N, 3, 3]
        backgrounds: Tensor | None,  # [C, 3]
        camera_rows: FloatArray,  # [C, CAMERA]
        view: View,
        render_mode: str,
        threads: int,
    ) -> tuple[Tensor, Tensor]:
        """Returns colors [C, H, W, 3 or 4] and alphas [C, H, W, 1]."""
        prepared = cpu.prepare(
            as_array(means),
            None if quats is None else as_array(quats),
            None if scales is None else as_array(scales),
            None if covars is None else upper_triangle(covars),
            as_array(opacities),
            as_array(colors),
        )
        count, channels = camera_rows.shape[0], 3 if render_mode == "RGB" else 4
        images = np.empty((count, view.height, view.width, channels), np.float32)
        alphas = np.empty((count, view.height, view.width, 1), np.float32)
        ground = np.zeros((count, 3), np.float32) if backgrounds is None else as_array(backgrounds)
        saved: list[tuple[Frame, FloatArray] | None] = [None] * count
        wanted = any(ctx.needs_input_grad)

        def work(share: Sequence[int]) -> None:
            scratch = Scratch()
            for c in share:
                frame = cpu.see(prepared, camera_rows[c], view, scratch)
                acc = cpu.blend(frame, view)
                kernels_blend.finish_frame(acc, ground[c], render_mode == "RGB+ED", images[c], alphas[c])
                if wanted:
                    saved[c] = cpu.keep(frame), acc

        cpu.on_threads(work, count, threads)
        if wanted:
            ctx.save_for_backward(means, quats, scales, opacities, colors, covars, backgrounds)
            ctx.saved, ctx.prepared, ctx.ground = saved, prepared, ground
            ctx.camera_rows, ctx.view, ctx.render_mode, ctx.threads = camera_rows, view, render_mode, threads
        return torch.from_numpy(images), torch.from_numpy(alphas)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_images: Tensor, grad_alphas: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the seven tensors, then None for the rest."""
        means, quats, scales, opacities, colors, covars, backgrounds = ctx.saved_tensors
        prepared: Prepared = ctx.prepared
        images, alphas = as_array(grad_images), as_array(grad_alphas)
        count, n = images.shape[0], prepared.kept.shape[0]
        totals: dict[int, FloatArray] = {}  # by first camera of a share

        def work(share: Sequence[int]) -> None:
            total = np.zeros((n, kernels_project_backward.OBJECT_GRADS), np.float32)
            scratch = Scratch()
            for c in share:
                frame, acc = ctx.saved[c]
                grads = scratch.take("grads", acc.shape, np.float32)
                rows = scratch.take("rows", (frame.records.shape[0], kernels_backward.GRADS), np.float32)
                kernels_backward.finish_frame_backward(
                    acc, ctx.render_mode == "RGB+ED", ctx.ground[c], images[c], alphas[c], grads
                )
                kernels_backward.blend_frame_backward(
                    frame.records, frame.tile_starts, frame.lists, ctx.view.tile, acc, grads, rows
                )
                kernels_project_backward.project_backward(
                    prepared.blocks, frame.source, frame.records, rows, ctx.camera_rows[c],
                    ctx.view.width, ctx.view.height, total,
                )  # fmt: skip
            totals[share[0]] = total

        cpu.on_threads(work, count, ctx.threads)
        per_splat = np.zeros((n, kernels_project_backward.OBJECT_GRADS), np.float32)
        for start in sorted(totals):
            per_splat += totals[start]

        def scatter(columns: slice, like: Tensor) -> Tensor:
            full = np.zeros((like.shape[0], columns.stop - columns.start), np.float32)
            full[prepared.kept] = per_splat[:, columns]
            return torch.from_numpy(full).reshape(like.shape)

        grad_quats = grad_scales = grad_covars = grad_backgrounds = None
        if covars is not None:
            grad_covars = torch.zeros_like(covars)
            grad_covars[:, UPPER_ROWS, UPPER_COLUMNS] = scatter(slice(3, 9), covars.new_empty(covars.shape[0], 6))
        else:
            quats_out, scales_out = np.zeros(quats.shape, np.float32), np.zeros(scales.shape, np.float32)
            kernels_project_backward.covariance_backward(
                as_array(quats), as_array(scales), prepared.kept, per_splat, quats_out, scales_out
            )
            grad_quats, grad_scales = torch.from_numpy(quats_out), torch.from_numpy(scales_out)
        if backgrounds is not None:
            light = torch.stack([torch.from_numpy(acc[..., 4]) for _, acc in ctx.saved])  # [C, H, W]
            grad_backgrounds = (grad_images[..., :3] * light[..., None]).sum((1, 2))
        return (
            scatter(slice(0, 3), means), grad_quats, grad_scales, scatter(slice(9, 10), opacities),
            scatter(slice(10, 13), colors), grad_covars, grad_backgrounds, None, None, None, None,
        )  # fmt: skip
