"""A naive CPU port of compositing, splat by splat and pixel by pixel with libm's exp: the SIMD kernel's yardstick."""

# mypy: allow-untyped-defs

import math

import numpy as np

from diffsplat.rasterize.jit import F, kernel
from diffsplat.rasterize.rules import ALPHA_MAX, ALPHA_MIN, STOP


@kernel
def blend_frame_scalar(records, tile_starts, lists, width, height, tile, acc):
    """Takes the arguments of `diffsplat.rasterize.kernels_blend.blend_frame` and gives the same result."""
    columns = (width + tile - 1) // tile
    acc[:] = F(0)
    for t in range(tile_starts.shape[0] - 1):
        tile_x, tile_y = (t % columns) * tile, (t // columns) * tile
        end_x, end_y = min(tile_x + tile, width), min(tile_y + tile, height)
        light = np.ones((tile, tile), np.float32)
        done = np.zeros((tile, tile), np.bool_)
        left = (end_x - tile_x) * (end_y - tile_y)
        for i in range(tile_starts[t], tile_starts[t + 1]):
            k = lists[i]
            u, v, ha, b, hc, op = (
                records[k, 0],
                records[k, 1],
                records[k, 2],
                records[k, 3],
                records[k, 4],
                records[k, 5],
            )
            x0 = max(tile_x, int(max(u - records[k, 10] - F(0.5), F(0))))
            x1 = min(end_x, int(max(u + records[k, 10] + F(0.5), F(0))))
            y0 = max(tile_y, int(max(v - records[k, 11] - F(0.5), F(0))))
            y1 = min(end_y, int(max(v + records[k, 11] + F(0.5), F(0))))
            for y in range(y0, y1):
                dy = v - (F(y) + F(0.5))
                for x in range(x0, x1):
                    if done[y - tile_y, x - tile_x]:
                        continue
                    dx = u - (F(x) + F(0.5))
                    s = (ha * dx + b * dy) * dx + hc * dy * dy
                    a = min(ALPHA_MAX, op * F(math.exp(-max(s, F(0)))))
                    if a < ALPHA_MIN:
                        continue
                    before = light[y - tile_y, x - tile_x]
                    after = before * (F(1) - a)
                    if after <= STOP:
                        done[y - tile_y, x - tile_x] = True
                        left -= 1
                        continue
                    w = a * before
                    light[y - tile_y, x - tile_x] = after
                    acc[y, x, 0] += w * records[k, 6]
                    acc[y, x, 1] += w * records[k, 7]
                    acc[y, x, 2] += w * records[k, 8]
                    acc[y, x, 3] += w * records[k, 9]
            if left == 0:
                break
        for y in range(tile_y, end_y):
            for x in range(tile_x, end_x):
                acc[y, x, 4] = light[y - tile_y, x - tile_x]
