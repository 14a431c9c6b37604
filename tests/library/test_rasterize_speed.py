"""The blend must stay SIMD. Losing that is silent (same images, only slower), so it is held against a scalar loop."""

import time
from collections.abc import Callable

import numpy as np

from benchmarks.scalar_blend import blend_frame_scalar
from benchmarks.splat_scene import make_scene, orbit
from diffsplat.rasterize import cpu
from diffsplat.rasterize.kernels_blend import blend_frame


def test_blend_is_at_least_half_again_as_fast_as_the_scalar_loop() -> None:
    size = 192
    scene, camera = make_scene(128), orbit(1, size)
    arrays = [s.numpy() for s in scene]
    view = cpu.View(size, size, 0.01, 1e10, 0.3)
    prepared = cpu.prepare(arrays[0], arrays[1], arrays[2], None, arrays[3], arrays[4])
    rows = cpu.cameras(camera.viewmats.numpy(), camera.intrinsics.numpy(), view)
    frame = cpu.see(prepared, rows[0], view, cpu.Scratch())
    images = [np.empty((size, size, 5), np.float32) for _ in range(2)]

    def seconds(blend: Callable[..., None], image: np.ndarray) -> float:
        start = time.thread_time()  # this thread's own time: neighbours on the machine do not count
        blend(frame.records, frame.tile_starts, frame.lists, size, size, view.tile, image)
        return time.thread_time() - start

    for blend, image in zip((blend_frame, blend_frame_scalar), images, strict=True):
        seconds(blend, image)  # compile
    assert np.abs(images[0] - images[1]).max() < 1e-4
    pairs = [(seconds(blend_frame, images[0]), seconds(blend_frame_scalar, images[1])) for _ in range(7)]
    ratio = float(np.median([scalar / simd for simd, scalar in pairs]))
    assert ratio >= 1.5, f"the blend is only {ratio:.2f} times as fast as a scalar loop: it is no longer SIMD"
