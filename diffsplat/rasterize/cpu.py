"""Frames on the CPU: object preparation, per-camera stages, one camera per thread.

numpy in, numpy out; torch, autograd and argument checks are in the neighbouring files. A camera's frame is the work of
one thread from beginning to end, so results do not depend on the number of threads, bit for bit.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from diffsplat.rasterize import kernels_blend, kernels_project
from diffsplat.rasterize.checks import MAX_FRAME_PAIRS, CrowdedFrameError
from diffsplat.rasterize.kernels_project import BLOCK, CAMERA, FIELDS, RECORD

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]

TILE = 16  # pixels; results do not depend on it, 8 .. 16 are within 10 % of each other in time


class View(NamedTuple):
    """One frame's request, shared by all cameras."""

    width: int
    height: int
    near_plane: float
    far_plane: float
    eps2d: float
    tile: int = TILE


class Prepared(NamedTuple):
    """An object, culled: what does not depend on the camera."""

    blocks: FloatArray  # [ceil(n / BLOCK), FIELDS * BLOCK]
    kept: IntArray  # [n] indices into the given splats
    opacities: FloatArray  # [N]
    colors: FloatArray  # [N, 3]


class Frame(NamedTuple):
    """What one camera sees, ready for blending (and kept for the backward pass)."""

    records: FloatArray  # [K, RECORD]
    source: IntArray  # [K] indices into `Prepared.kept`
    tile_starts: IntArray  # [tiles + 1]
    lists: IntArray  # [pairs] record numbers, by tile, front to back


class Scratch:
    """Buffers of one thread, reused from frame to frame: fresh memory costs more page faults than arithmetic."""

    def __init__(self) -> None:
        self._arrays: dict[str, npt.NDArray[Any]] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: type[np.generic]) -> npt.NDArray[Any]:
        """An uninitialised C-contiguous array of this shape; valid until the same name is taken again."""
        size = int(np.prod(shape))
        array = self._arrays.get(name)
        if array is None or array.size < size:
            array = self._arrays[name] = np.empty(size + size // 8, dtype)
        return array[:size].reshape(shape)


def prepare(
    means: FloatArray,  # [N, 3]
    quats: FloatArray | None,  # [N, 4] wxyz
    scales: FloatArray | None,  # [N, 3]
    covars: FloatArray | None,  # [N, 6] upper triangle; replaces quats and scales
    opacities: FloatArray,  # [N]
    colors: FloatArray,  # [N, 3]
) -> Prepared:
    """Cull and compute covariances once per object; all values must be finite."""
    n = means.shape[0]
    blocks = np.empty((-(-n // BLOCK), FIELDS, BLOCK), np.float32)
    kept = np.empty(n, np.int32)
    empty = np.empty((0, 6), np.float32)
    has_covars = covars is not None
    count = kernels_project.prepare(
        means,
        quats if quats is not None else empty[:, :4].copy(),
        scales if scales is not None else empty[:, :3].copy(),
        covars if covars is not None else empty,
        has_covars,
        opacities,
        blocks,
        kept,
    )
    used = -(-count // BLOCK)
    blocks[used - 1 : used, :, count - (used - 1) * BLOCK :] = 0  # lanes past the last splat: computed, never read
    return Prepared(blocks[:used].reshape(used, FIELDS * BLOCK), kept[:count], opacities, colors)


def cameras(viewmats: FloatArray, intrinsics: FloatArray, view: View) -> FloatArray:
    """World-to-camera [C, 4, 4] and K [C, 3, 3] to the flat rows [C, CAMERA] that kernels read."""
    rows = np.empty((viewmats.shape[0], CAMERA), np.float32)
    rows[:, :9] = viewmats[:, :3, :3].reshape(-1, 9)
    rows[:, 9:12] = viewmats[:, :3, 3]
    rows[:, 12], rows[:, 13] = intrinsics[:, 0, 0], intrinsics[:, 1, 1]
    rows[:, 14], rows[:, 15] = intrinsics[:, 0, 2], intrinsics[:, 1, 2]
    rows[:, 16], rows[:, 17] = view.near_plane, view.far_plane
    return rows


def see(prepared: Prepared, camera: FloatArray, view: View, scratch: Scratch, splat_scale: float = 1.0) -> Frame:
    """Project, order by depth and list by tile. The frame's arrays live in `scratch`. Raises CrowdedFrameError."""
    n = prepared.kept.shape[0]
    columns, rows = -(-view.width // view.tile), -(-view.height // view.tile)
    records = scratch.take("records", (n, RECORD), np.float32)
    source = scratch.take("source", (n,), np.int32)
    boxes = scratch.take("boxes", (n, 4), np.int16)
    counts = scratch.take("counts", (columns * rows,), np.int32)
    seen = kernels_project.project(
        prepared.blocks, n, prepared.kept, prepared.opacities, prepared.colors, camera, view.width, view.height,
        view.tile, np.float32(view.eps2d), np.float32(splat_scale), records, source, boxes, counts,
    )  # fmt: skip
    if seen < 0:
        raise CrowdedFrameError(
            f"the splats of one frame of {view.width} x {view.height} pixels cover more than {MAX_FRAME_PAIRS} tiles "
            f"of {view.tile} x {view.tile} in all, splat by splat: too many splats are too large"
        )
    keys, orders = scratch.take("keys", (2, n), np.uint32), scratch.take("orders", (2, n), np.int32)
    which = kernels_project.depth_order(records, seen, keys[0], orders[0], keys[1], orders[1])
    starts = scratch.take("starts", (columns * rows + 1,), np.int32)
    lists = scratch.take("lists", (int(counts.sum()),), np.int32)
    kernels_project.fill_tile_lists(boxes, orders[which], seen, columns, counts, starts, lists)
    return Frame(records[:seen], source[:seen], starts, lists)


def keep(frame: Frame) -> Frame:
    """A copy that outlives the scratch buffers."""
    return Frame(frame.records.copy(), frame.source.copy(), frame.tile_starts.copy(), frame.lists.copy())


def blend(frame: Frame, view: View) -> FloatArray:
    """Weighted sums r, g, b, z and the final transmittance, [H, W, 5]."""
    acc = np.empty((view.height, view.width, kernels_blend.CHANNELS), np.float32)
    kernels_blend.blend_frame(frame.records, frame.tile_starts, frame.lists, view.width, view.height, view.tile, acc)
    return acc


def on_threads(work: Callable[[Sequence[int]], None], items: int, threads: int) -> None:
    """Deal `items` numbers out to at most `threads` calls of `work`: call t gets t, t + threads, ...

    The dealing is fixed, so sums made per call repeat bit for bit. The pool is made per call (about 0.1 ms): a global
    one would not survive a fork.
    """
    threads = max(1, min(threads, items))
    shares = [range(t, items, threads) for t in range(threads)]
    if threads == 1:
        work(shares[0])
        return
    with ThreadPoolExecutor(threads - 1, thread_name_prefix="rasterize") as pool:
        futures = [pool.submit(work, share) for share in shares[1:]]
        work(shares[0])
        for future in futures:
            future.result()


def render_uint8(
    prepared: Prepared,
    camera_rows: FloatArray,  # [C, CAMERA]
    view: View,
    backgrounds: FloatArray,  # [C, 3]
    splat_scales: FloatArray,  # [C]
    threads: int,
) -> npt.NDArray[np.uint8]:
    """RGB frames [C, H, W, 3], converted inside the kernel."""
    images = np.empty((camera_rows.shape[0], view.height, view.width, 3), np.uint8)

    def work(share: Sequence[int]) -> None:
        scratch = Scratch()
        for c in share:
            frame = see(prepared, camera_rows[c], view, scratch, float(splat_scales[c]))
            kernels_blend.blend_frame_uint8(
                frame.records,
                frame.tile_starts,
                frame.lists,
                view.width,
                view.height,
                view.tile,
                backgrounds[c],
                images[c],
            )

    on_threads(work, camera_rows.shape[0], threads)
    return images
