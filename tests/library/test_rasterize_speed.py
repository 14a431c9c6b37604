"""The inner loops must stay SIMD. Losing that is silent (same images, only slower), so the compiled code is read.

How much it brings is measured by `python -m benchmarks.rasterizer`.
"""

import re
from typing import Any

import numba
import numpy as np
import pytest

from benchmarks.scalar_blend import blend_frame_scalar
from benchmarks.splat_scene import make_scene, orbit
from diffsplat.rasterize import cpu, jit, kernels_project, rasterization
from diffsplat.rasterize.kernels_backward import blend_frame_backward
from diffsplat.rasterize.kernels_blend import blend_frame

SIZE = 32


@pytest.fixture(scope="module")
def frame() -> cpu.Frame:
    """A small frame; drawing it, with gradients, runs every kernel, which then knows its argument types."""
    splats, camera = [splat.requires_grad_() for splat in make_scene(8)], orbit(1, SIZE)
    rasterization(*splats, *camera, SIZE, SIZE)[0].sum().backward()
    means, quats, scales, opacities, colors = (splat.detach().numpy() for splat in splats)
    view = cpu.View(SIZE, SIZE, 0.01, 1e10, 0.3)
    prepared = cpu.prepare(means, quats, scales, None, opacities, colors)
    (row,) = cpu.cameras(camera.viewmats.numpy(), camera.intrinsics.numpy(), view)
    return cpu.see(prepared, row, view, cpu.Scratch())


def products(kernel: Any) -> tuple[int, int]:
    """Products of float vectors and of single floats in the optimised code of a kernel and of those that it calls."""
    signature = kernel.signatures[0]
    fresh = numba.njit(cache=False, **jit.OPTIONS)(kernel.py_func)  # code loaded from the cache cannot be read
    fresh.compile(signature)
    code = fresh.inspect_llvm(signature)
    return len(re.findall(r"= fmul [a-z ]*<\d+ x float>", code)), len(re.findall(r"= fmul [a-z ]*float ", code))


@pytest.mark.parametrize(
    "kernel", [kernels_project.project, blend_frame, blend_frame_backward], ids=lambda k: k.__name__
)
def test_inner_loops_multiply_vectors(frame: cpu.Frame, kernel: Any) -> None:
    vectors, _ = products(kernel)
    assert vectors > 10  # 0 once it is lost; how often the compiler repeats a loop depends on the CPU (20 and more)


def test_the_scalar_yardstick_has_no_vectors_and_draws_the_same(frame: cpu.Frame) -> None:
    images = [np.empty((SIZE, SIZE, 5), np.float32) for _ in range(2)]
    for blend, image in zip((blend_frame, blend_frame_scalar), images, strict=True):
        blend(frame.records, frame.tile_starts, frame.lists, SIZE, SIZE, 16, image)
    assert np.abs(images[0] - images[1]).max() < 1e-4
    vectors, singles = products(blend_frame_scalar)
    assert vectors == 0 and singles > 10
