"""Compositing: tiles of 4x4-pixel blocks, splats front to back, sixteen pixels per inner loop (SIMD).

State of a tile: per block ``[CHANNELS, 16]`` floats: T, r, g, b, z. The sign of T is the "pixel done" flag, |T| the
transmittance.
"""

# mypy: allow-untyped-defs
# (numba infers the types of kernels; shapes are in their docstrings)

import numpy as np

from diffsplat.rasterize.jit import F, U, kernel
from diffsplat.rasterize.kernels_project import RECORD
from diffsplat.rasterize.rules import ALPHA_MAX, ALPHA_MIN, STOP

CHANNELS = 5  # T r g b z
CHUNK = 32  # splats gathered at once; afterwards finished blocks are retired
LANES = 16

S_MAX = np.float32(5.6)  # > -ln ALPHA_MIN: beyond it nothing is drawn for any opacity <= 1
EIGHTH = np.float32(0.125)
# exp(-s) = p(s / 8)^8 on [0, 5.6]: minimax of degree 5, largest relative error 1.6e-6.
E0, E1, E2 = np.float32(0.99999994), np.float32(-0.99999243), np.float32(0.49988127)
E3, E4, E5 = np.float32(-0.16596903), np.float32(0.03976483), np.float32(-0.00584249)


@kernel
def exp_minus(s):
    """exp(-s), accurate for s in 0 .. 5.6 only, beyond which nothing is drawn. math.exp would keep the loops scalar."""
    y = min(max(s, F(0)), S_MAX) * EIGHTH
    p = E0 + y * (E1 + y * (E2 + y * (E3 + y * (E4 + y * E5))))
    p = p * p
    p = p * p
    return p * p


@kernel
def start_tile(state, dead, tile, tile_x, tile_y, width, height):
    """Reset a tile; pixels outside the image start as done, blocks outside as dead."""
    per_row = tile // 4
    state[:] = F(0)
    for block in range(per_row * per_row):
        x, y = tile_x + (block % per_row) * 4, tile_y + (block // per_row) * 4
        dead[block] = x >= width or y >= height
        for j in range(LANES):
            inside = x + (j & 3) < width and y + (j >> 2) < height
            state[block * CHANNELS * LANES + j] = F(1) if inside else F(-1)


@kernel
def gather(local, spans, records, lists, start, end, tile, tile_x, tile_y):
    """Copy up to CHUNK records into `local`, u and v relative to the tile's first pixel centre; and block ranges."""
    for i in range(end - start):
        k = lists[start + i]
        for f in range(RECORD):
            local[i * RECORD + f] = records[k, f]
    last = F(tile - 1)
    for i in range(end - start):
        u, v = local[i * RECORD] - (F(tile_x) + F(0.5)), local[i * RECORD + 1] - (F(tile_y) + F(0.5))
        half_x, half_y = local[i * RECORD + 10], local[i * RECORD + 11]
        local[i * RECORD], local[i * RECORD + 1] = u, v
        spans[i, 0], spans[i, 1] = np.int32(max(u - half_x, F(0))) >> 2, np.int32(min(u + half_x, last)) >> 2
        spans[i, 2], spans[i, 3] = np.int32(max(v - half_y, F(0))) >> 2, np.int32(min(v + half_y, last)) >> 2


@kernel
def retire_blocks(state, dead, blocks, stride):
    """Mark blocks without a living pixel as dead (T first in their `stride` floats); returns whether any lives."""
    alive = False
    for block in range(blocks):
        if not dead[block]:
            highest = F(-1)
            for j in range(U(LANES)):
                highest = max(highest, state[U(block * stride) + j])
            if highest > F(0):
                alive = True
            else:
                dead[block] = True
    return alive


@kernel
def blend_tile(state, dead, local, spans, records, lists, start, end, tile, tile_x, tile_y):
    """Composite the splats ``lists[start:end]`` into a started tile."""
    per_row = tile // 4
    n, n2, n3, n4 = U(LANES), U(2 * LANES), U(3 * LANES), U(4 * LANES)
    for chunk in range(start, end, CHUNK):
        size = min(CHUNK, end - chunk)
        gather(local, spans, records, lists, chunk, chunk + size, tile, tile_x, tile_y)
        for i in range(size):
            at = i * RECORD
            u, v, ha, b, hc, op = local[at], local[at + 1], local[at + 2], local[at + 3], local[at + 4], local[at + 5]
            fr, fg, fb, fz = local[at + 6], local[at + 7], local[at + 8], local[at + 9]
            for row in range(spans[i, 2], spans[i, 3] + 1):
                by = v - F(4 * row)
                for column in range(spans[i, 0], spans[i, 1] + 1):
                    block = row * per_row + column
                    if dead[block]:
                        continue
                    bx = u - F(4 * column)
                    o = U(block * CHANNELS * LANES)
                    for j in range(U(LANES)):
                        dx, dy = bx - F(np.int32(j & U(3))), by - F(np.int32(j >> U(2)))
                        s = (ha * dx + b * dy) * dx + hc * dy * dy
                        a = min(ALPHA_MAX, op * exp_minus(s))
                        a = a if a >= ALPHA_MIN else F(0)
                        t = state[o + j]
                        w = a * t
                        nt = t - w
                        live = nt > STOP
                        state[o + j] = nt if live else -abs(t)
                        w = w if live else F(0)
                        state[o + n + j] += w * fr
                        state[o + n2 + j] += w * fg
                        state[o + n3 + j] += w * fb
                        state[o + n4 + j] += w * fz
        if not retire_blocks(state, dead, per_row * per_row, CHANNELS * LANES):
            return


@kernel
def blend_frame(records, tile_starts, lists, width, height, tile, acc):
    """Composite a frame into `acc` [H, W, 5]: r, g, b, z (all weighted sums) and the final transmittance."""
    per_row, columns = tile // 4, (width + tile - 1) // tile
    state, dead = np.empty(per_row * per_row * CHANNELS * LANES, np.float32), np.empty(per_row * per_row, np.bool_)
    local, spans = np.empty(CHUNK * RECORD, np.float32), np.empty((CHUNK, 4), np.int32)
    for t in range(tile_starts.shape[0] - 1):
        tile_x, tile_y = (t % columns) * tile, (t // columns) * tile
        start_tile(state, dead, tile, tile_x, tile_y, width, height)
        blend_tile(state, dead, local, spans, records, lists, tile_starts[t], tile_starts[t + 1], tile, tile_x, tile_y)
        for y in range(min(tile, height - tile_y)):
            for x in range(min(tile, width - tile_x)):
                o = ((y >> 2) * per_row + (x >> 2)) * CHANNELS * LANES + (y & 3) * 4 + (x & 3)
                for c in range(4):
                    acc[tile_y + y, tile_x + x, c] = state[o + (c + 1) * LANES]
                acc[tile_y + y, tile_x + x, 4] = abs(state[o])


@kernel
def blend_frame_uint8(records, tile_starts, lists, width, height, tile, background, image):
    """Composite a frame over `background` [3] straight into `image` [H, W, 3] uint8: int(255 * clamp(x, 0, 1))."""
    per_row, columns = tile // 4, (width + tile - 1) // tile
    state, dead = np.empty(per_row * per_row * CHANNELS * LANES, np.float32), np.empty(per_row * per_row, np.bool_)
    local, spans = np.empty(CHUNK * RECORD, np.float32), np.empty((CHUNK, 4), np.int32)
    for t in range(tile_starts.shape[0] - 1):
        tile_x, tile_y = (t % columns) * tile, (t // columns) * tile
        start_tile(state, dead, tile, tile_x, tile_y, width, height)
        blend_tile(state, dead, local, spans, records, lists, tile_starts[t], tile_starts[t + 1], tile, tile_x, tile_y)
        for y in range(min(tile, height - tile_y)):
            for x in range(min(tile, width - tile_x)):
                o = ((y >> 2) * per_row + (x >> 2)) * CHANNELS * LANES + (y & 3) * 4 + (x & 3)
                for c in range(3):
                    value = state[o + (c + 1) * LANES] + abs(state[o]) * background[c]
                    image[tile_y + y, tile_x + x, c] = np.uint8(F(255) * min(max(value, F(0)), F(1)))


@kernel
def finish_frame(acc, background, normalised_depth, colors, alphas):
    """Acc [H, W, 5] -> colors [H, W, 3 or 4] (background under RGB, never under depth) and alphas [H, W, 1]."""
    for y in range(acc.shape[0]):
        for x in range(acc.shape[1]):
            t = acc[y, x, 4]
            alpha = F(1) - t
            for c in range(3):
                colors[y, x, c] = acc[y, x, c] + t * background[c]
            alphas[y, x, 0] = alpha
            if colors.shape[2] == 4:
                colors[y, x, 3] = acc[y, x, 3] / max(alpha, F(1e-10)) if normalised_depth else acc[y, x, 3]
