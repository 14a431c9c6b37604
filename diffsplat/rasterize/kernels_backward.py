"""Gradient of compositing: the same walk front to back, so the transmittance is never recovered by a division.

With g the cotangent of the sums (r, g, b, z), gT that of the final transmittance and e_i = f_i . g, a pixel starts with
``Rem = acc . g + T_final * gT``, and each splat does ``Rem -= w_i e_i`` and ``dL/da_i = T_i e_i - Rem / (1 - a_i)``.
Every tile adds to `grad_records` [K, GRADS], one frame is one thread's work: no atomics.

    0 d/du, 1 d/dv | 2 d/d(A/2), 3 d/dB, 4 d/d(C/2) | 5 opacity | 6 7 8 colour | 9 z as a colour
"""

# mypy: allow-untyped-defs
# (numba infers the types of kernels; shapes are in their docstrings)

import numpy as np

from diffsplat.rasterize.jit import F, U, kernel
from diffsplat.rasterize.kernels_blend import CHUNK, LANES, exp_minus, gather, retire_blocks
from diffsplat.rasterize.kernels_project import RECORD
from diffsplat.rasterize.rules import ALPHA_MAX, ALPHA_MIN, STOP

GRADS = 10
PIXEL = 6  # T, Rem, g_r, g_g, g_b, g_z; the sign of T is the "pixel done" flag


@kernel
def start_tile_backward(pixels, dead, tile, tile_x, tile_y, acc, grads):
    """Load a tile's cotangents; pixels outside the image start as done, blocks outside as dead."""
    height, width, per_row = acc.shape[0], acc.shape[1], tile // 4
    pixels[:] = F(0)
    for block in range(per_row * per_row):
        x0, y0 = tile_x + (block % per_row) * 4, tile_y + (block // per_row) * 4
        dead[block] = x0 >= width or y0 >= height
        for j in range(LANES):
            x, y, o = x0 + (j & 3), y0 + (j >> 2), block * PIXEL * LANES + j
            if x >= width or y >= height:
                pixels[o] = F(-1)
                continue
            pixels[o] = F(1)
            rem = acc[y, x, 4] * grads[y, x, 4]
            for c in range(4):
                rem += acc[y, x, c] * grads[y, x, c]
                pixels[o + (c + 2) * LANES] = grads[y, x, c]
            pixels[o + LANES] = rem


@kernel
def blend_tile_backward(pixels, lanes, dead, local, spans, records, lists, start, end,
                        tile, tile_x, tile_y, grad_records):  # fmt: skip
    """Walk a started tile's splats ``lists[start:end]`` and add to their rows of `grad_records`.

    `pixels` and `lanes` [GRADS * 16] stay two arrays: merged into one the loop is 5 times slower (alias checks).
    """
    per_row = tile // 4
    n, n2, n3, n4, n5 = U(LANES), U(2 * LANES), U(3 * LANES), U(4 * LANES), U(5 * LANES)
    n6, n7, n8, n9 = U(6 * LANES), U(7 * LANES), U(8 * LANES), U(9 * LANES)
    for chunk in range(start, end, CHUNK):
        size = min(CHUNK, end - chunk)
        gather(local, spans, records, lists, chunk, chunk + size, tile, tile_x, tile_y)
        for i in range(size):
            at = i * RECORD
            u, v, ha, b, hc, op = local[at], local[at + 1], local[at + 2], local[at + 3], local[at + 4], local[at + 5]
            fr, fg, fb, fz = local[at + 6], local[at + 7], local[at + 8], local[at + 9]
            touched = False
            for row in range(spans[i, 2], spans[i, 3] + 1):
                by = v - F(4 * row)
                for column in range(spans[i, 0], spans[i, 1] + 1):
                    block = row * per_row + column
                    if dead[block]:
                        continue
                    if not touched:
                        lanes[:] = F(0)
                        touched = True
                    bx = u - F(4 * column)
                    o = U(block * PIXEL * LANES)
                    for j in range(U(LANES)):
                        dx, dy = bx - F(np.int32(j & U(3))), by - F(np.int32(j >> U(2)))
                        s = (ha * dx + b * dy) * dx + hc * dy * dy
                        p = exp_minus(s)
                        raw = op * p
                        a = min(ALPHA_MAX, raw)
                        a = a if a >= ALPHA_MIN else F(0)
                        t = pixels[o + j]
                        w = a * t
                        nt = t - w
                        live = nt > STOP
                        pixels[o + j] = nt if live else -abs(t)
                        w = w if live else F(0)
                        gr, gg, gb, gz = pixels[o + n2 + j], pixels[o + n3 + j], pixels[o + n4 + j], pixels[o + n5 + j]
                        e = fr * gr + fg * gg + fb * gb + fz * gz
                        rem = pixels[o + n + j] - w * e
                        pixels[o + n + j] = rem
                        da = t * e - rem / (F(1) - a)
                        # No gradient through a clamped, a skipped or a stopped alpha.
                        da = da if live & (a > F(0)) & (raw <= ALPHA_MAX) else F(0)
                        lanes[n5 + j] += p * da
                        ds = -raw * da
                        sx, sy = ds * dx, ds * dy
                        lanes[j] += sx
                        lanes[n + j] += sy
                        lanes[n2 + j] += sx * dx
                        lanes[n3 + j] += sx * dy
                        lanes[n4 + j] += sy * dy
                        lanes[n6 + j] += w * gr
                        lanes[n7 + j] += w * gg
                        lanes[n8 + j] += w * gb
                        lanes[n9 + j] += w * gz
            if touched:
                k = lists[chunk + i]
                sum_x, sum_y = F(0), F(0)
                for j in range(U(LANES)):
                    sum_x += lanes[j]
                    sum_y += lanes[n + j]
                grad_records[k, 0] += F(2) * ha * sum_x + b * sum_y
                grad_records[k, 1] += b * sum_x + F(2) * hc * sum_y
                for c in range(2, GRADS):
                    total = F(0)
                    for j in range(U(LANES)):
                        total += lanes[U(c * LANES) + j]
                    grad_records[k, c] += total
        if not retire_blocks(pixels, dead, per_row * per_row, PIXEL * LANES):
            return


@kernel
def blend_frame_backward(records, tile_starts, lists, tile, acc, grads, grad_records):
    """acc, grads [H, W, 5] (sums r g b z and final transmittance, and their cotangents) -> grad_records [K, GRADS]."""
    per_row, columns = tile // 4, (acc.shape[1] + tile - 1) // tile
    pixels, lanes = np.empty(per_row * per_row * PIXEL * LANES, np.float32), np.empty(GRADS * LANES, np.float32)
    dead, local = np.empty(per_row * per_row, np.bool_), np.empty(CHUNK * RECORD, np.float32)
    spans = np.empty((CHUNK, 4), np.int32)
    grad_records[:] = F(0)
    for t in range(tile_starts.shape[0] - 1):
        if tile_starts[t] == tile_starts[t + 1]:
            continue
        tile_x, tile_y = (t % columns) * tile, (t // columns) * tile
        start_tile_backward(pixels, dead, tile, tile_x, tile_y, acc, grads)
        blend_tile_backward(
            pixels, lanes, dead, local, spans, records, lists, tile_starts[t], tile_starts[t + 1],
            tile, tile_x, tile_y, grad_records,
        )  # fmt: skip


@kernel
def finish_frame_backward(acc, normalised_depth, background, grad_colors, grad_alphas, grads):
    """Cotangents of `finish_frame`'s colors [H, W, 3 or 4], alphas [H, W, 1] -> those of acc, `grads` [H, W, 5]."""
    for y in range(acc.shape[0]):
        for x in range(acc.shape[1]):
            alpha = F(1) - acc[y, x, 4]
            grad_t = -grad_alphas[y, x, 0]
            for c in range(3):
                grads[y, x, c] = grad_colors[y, x, c]
                grad_t += background[c] * grad_colors[y, x, c]
            grads[y, x, 3] = F(0)
            if grad_colors.shape[2] == 4:
                g = grad_colors[y, x, 3]
                if not normalised_depth:
                    grads[y, x, 3] = g
                elif alpha > F(1e-10):
                    grads[y, x, 3] = g / alpha
                    grad_t += g * acc[y, x, 3] / (alpha * alpha)  # alpha = 1 - T
                else:
                    grads[y, x, 3] = g * F(1e10)
            grads[y, x, 4] = grad_t
