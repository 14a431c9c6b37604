"""Once per object: cull and 3-D covariance. Once per camera: projection, depth order, tile lists.

Splats are kept as AoSoA blocks of `BLOCK`, ``[blocks, FIELDS, BLOCK]``: with one base pointer and unit stride
the projection is SIMD. What a camera sees is a compact list of records of `RECORD` floats,
in the splats' own order, so that equal depths keep the lower index in front (the sort is stable):

    0 u, 1 v (pixels) | 2 A/2, 3 B, 4 C/2 of the conic | 5 opacity | 6 7 8 colour | 9 z | 10 11 half box (pixels)

The formulas are gsplat 1.5.3's (`persp_proj`, `add_blur`): J at x/z, y/z clamped to the frustum plus 30 % of half its
width.
"""

# mypy: allow-untyped-defs
# (numba infers the types of kernels; shapes are in their docstrings)

import math

import numpy as np
from diffsplat_client.cloud import VISIBLE_OPACITY

from diffsplat.rasterize.checks import MAX_FRAME_PAIRS
from diffsplat.rasterize.jit import F, U, kernel
from diffsplat.rasterize.rules import ALPHA_MIN

BLOCK = 256
FIELDS = 10  # x y z, c00 c01 c02 c11 c12 c22, support radius in sigmas
RECORD = 12
PROJECTED = 8  # u v z A/2 B C/2 half-box-x half-box-y
CAMERA = 18  # rotation 9, translation 3, fx fy cx cy, near far

OPACITY_TO_RATIO = np.float32(1.0 / VISIBLE_OPACITY)  # opacity -> opacity / ALPHA_MIN
# The box is exact up to rounding, which the margin covers: nothing is drawn outside the ellipse of alpha = ALPHA_MIN.
BOX_SCALE = np.float32(1.0005)
BOX_MARGIN = np.float32(0.01)
DET_MAX = np.float32(1e37)  # pixel^4; beyond it the conic overflows float32, and nothing sensible is that large


@kernel
def prepare(means, quats, scales, covars, has_covars, opacities, blocks, kept):
    """Fill `blocks` and `kept` (indices with opacity >= ALPHA_MIN); returns how many.

    Quaternions (w, x, y, z) are normalised; a zero quaternion drops its splat. `covars` is [N, 6], upper triangle.
    """
    n = 0
    for i in range(means.shape[0]):
        if not opacities[i] >= ALPHA_MIN:
            continue
        if has_covars:
            c00, c01, c02 = covars[i, 0], covars[i, 1], covars[i, 2]
            c11, c12, c22 = covars[i, 3], covars[i, 4], covars[i, 5]
        else:
            w, x, y, z = quats[i, 0], quats[i, 1], quats[i, 2], quats[i, 3]
            square = w * w + x * x + y * y + z * z
            if not square > F(1e-30):
                continue
            inv = F(1.0) / math.sqrt(square)
            w, x, y, z = w * inv, x * inv, y * inv, z * inv
            sx, sy, sz = scales[i, 0], scales[i, 1], scales[i, 2]
            m00, m01, m02 = (
                (F(1) - F(2) * (y * y + z * z)) * sx,
                F(2) * (x * y - w * z) * sy,
                F(2) * (x * z + w * y) * sz,
            )
            m10, m11, m12 = (
                F(2) * (x * y + w * z) * sx,
                (F(1) - F(2) * (x * x + z * z)) * sy,
                F(2) * (y * z - w * x) * sz,
            )
            m20, m21, m22 = (
                F(2) * (x * z - w * y) * sx,
                F(2) * (y * z + w * x) * sy,
                (F(1) - F(2) * (x * x + y * y)) * sz,
            )
            c00 = m00 * m00 + m01 * m01 + m02 * m02
            c01 = m00 * m10 + m01 * m11 + m02 * m12
            c02 = m00 * m20 + m01 * m21 + m02 * m22
            c11 = m10 * m10 + m11 * m11 + m12 * m12
            c12 = m10 * m20 + m11 * m21 + m12 * m22
            c22 = m20 * m20 + m21 * m21 + m22 * m22
        block, lane = n // BLOCK, n % BLOCK
        blocks[block, 0, lane], blocks[block, 1, lane], blocks[block, 2, lane] = means[i, 0], means[i, 1], means[i, 2]
        blocks[block, 3, lane], blocks[block, 4, lane], blocks[block, 5, lane] = c00, c01, c02
        blocks[block, 6, lane], blocks[block, 7, lane], blocks[block, 8, lane] = c11, c12, c22
        blocks[block, 9, lane] = math.sqrt(max(F(2) * math.log(OPACITY_TO_RATIO * opacities[i]), F(0)))
        kept[n] = i
        n += 1
    return n


@kernel
def project_block(block, cam, width, height, eps2d, splat_scale, out):
    """Project one block [FIELDS * BLOCK] into `out` [PROJECTED * BLOCK]; a culled splat gets a half box of -1e30."""
    r00, r01, r02, r10, r11, r12, r20, r21, r22 = cam[0], cam[1], cam[2], cam[3], cam[4], cam[5], cam[6], cam[7], cam[8]
    t0, t1, t2 = cam[9], cam[10], cam[11]
    fx, fy, cx, cy, near, far = cam[12], cam[13], cam[14], cam[15], cam[16], cam[17]
    margin_x, margin_y = F(0.3) * (F(0.5) * F(width) / fx), F(0.3) * (F(0.5) * F(height) / fy)
    hi_x, lo_x = (F(width) - cx) / fx + margin_x, -(cx / fx + margin_x)
    hi_y, lo_y = (F(height) - cy) / fy + margin_y, -(cy / fy + margin_y)
    sfx, sfy = fx * splat_scale, fy * splat_scale
    n = U(BLOCK)
    for i in range(U(BLOCK)):
        x0, y0, z0 = block[i], block[i + n], block[i + U(2) * n]
        c00, c01, c02 = block[i + U(3) * n], block[i + U(4) * n], block[i + U(5) * n]
        c11, c12, c22 = block[i + U(6) * n], block[i + U(7) * n], block[i + U(8) * n]
        ext = block[i + U(9) * n]
        x = r00 * x0 + r01 * y0 + r02 * z0 + t0
        y = r10 * x0 + r11 * y0 + r12 * z0 + t1
        z = r20 * x0 + r21 * y0 + r22 * z0 + t2
        rz = F(1) / z
        xz, yz = x * rz, y * rz
        px, py = min(max(xz, lo_x), hi_x), min(max(yz, lo_y), hi_y)
        gx, gy = sfx * rz, sfy * rz
        a0, a1, a2 = gx * (r00 - px * r20), gx * (r01 - px * r21), gx * (r02 - px * r22)
        b0, b1, b2 = gy * (r10 - py * r20), gy * (r11 - py * r21), gy * (r12 - py * r22)
        s0, s1, s2 = c00 * a0 + c01 * a1 + c02 * a2, c01 * a0 + c11 * a1 + c12 * a2, c02 * a0 + c12 * a1 + c22 * a2
        v00 = a0 * s0 + a1 * s1 + a2 * s2 + eps2d
        v01 = b0 * s0 + b1 * s1 + b2 * s2
        s0, s1, s2 = c00 * b0 + c01 * b1 + c02 * b2, c01 * b0 + c11 * b1 + c12 * b2, c02 * b0 + c12 * b1 + c22 * b2
        v11 = b0 * s0 + b1 * s1 + b2 * s2 + eps2d
        det = v00 * v11 - v01 * v01
        inv = F(1) / det
        keep = (z >= near) & (z <= far) & (det > F(0)) & (det < DET_MAX)
        out[i] = fx * xz + cx
        out[i + n] = fy * yz + cy
        out[i + U(2) * n] = z
        out[i + U(3) * n] = F(0.5) * v11 * inv
        out[i + U(4) * n] = -v01 * inv
        out[i + U(5) * n] = F(0.5) * v00 * inv
        half_x = BOX_SCALE * ext * math.sqrt(v00) + BOX_MARGIN
        half_y = BOX_SCALE * ext * math.sqrt(v11) + BOX_MARGIN
        out[i + U(6) * n] = half_x if keep else F(-1e30)
        out[i + U(7) * n] = half_y if keep else F(-1e30)


@kernel
def project(blocks, count, kept, opacities, colors, cam, width, height, tile, eps2d, splat_scale,
            records, source, boxes, tile_counts):  # fmt: skip
    """Project all blocks for one camera and write what it sees.

    Args (shapes): blocks [B, FIELDS * BLOCK], records [K, RECORD], source [K] int32 (index among the kept splats),
    boxes [K, 4] int16 (first/last tile column, first/last tile row), tile_counts [tiles] int32, zeroed here.

    Returns:
        How many records were written; -1 once there are more than MAX_FRAME_PAIRS pairs of splat and tile.
    """
    out = np.empty(PROJECTED * BLOCK, np.float32)
    w, h, columns = F(width), F(height), (width + tile - 1) // tile
    tile_counts[:] = 0
    k, pairs = 0, 0
    for b in range(blocks.shape[0]):
        project_block(blocks[b], cam, width, height, eps2d, splat_scale, out)
        for i in range(min(BLOCK, count - b * BLOCK)):
            u, v, half_x, half_y = out[i], out[BLOCK + i], out[6 * BLOCK + i], out[7 * BLOCK + i]
            # Pixel centres are at +0.5: pixels ceil(u - half - 0.5) .. floor(u + half - 0.5). Comparisons come before
            # any conversion to int, because huge and NaN values do not convert.
            left, right = u - half_x - F(0.5), u + half_x - F(0.5)
            top, bottom = v - half_y - F(0.5), v + half_y - F(0.5)
            if not ((half_x > F(0)) & (right >= F(0)) & (left <= w - F(1)) & (bottom >= F(0)) & (top <= h - F(1))):
                continue
            x0, x1 = np.int32(np.ceil(max(left, F(0)))), np.int32(min(right, w - F(1)))
            y0, y1 = np.int32(np.ceil(max(top, F(0)))), np.int32(min(bottom, h - F(1)))
            if x0 > x1 or y0 > y1:
                continue  # falls between pixel centres
            j = kept[b * BLOCK + i]
            records[k, 0], records[k, 1] = u, v
            records[k, 2], records[k, 3], records[k, 4] = out[3 * BLOCK + i], out[4 * BLOCK + i], out[5 * BLOCK + i]
            records[k, 5] = opacities[j]
            records[k, 6], records[k, 7], records[k, 8] = colors[j, 0], colors[j, 1], colors[j, 2]
            records[k, 9] = out[2 * BLOCK + i]
            records[k, 10], records[k, 11] = half_x, half_y
            source[k] = b * BLOCK + i
            c0, c1, q0, q1 = x0 // tile, x1 // tile, y0 // tile, y1 // tile
            boxes[k, 0], boxes[k, 1], boxes[k, 2], boxes[k, 3] = c0, c1, q0, q1
            pairs += (c1 - c0 + 1) * (q1 - q0 + 1)
            for row in range(q0, q1 + 1):
                for column in range(c0, c1 + 1):
                    tile_counts[row * columns + column] += 1
            k += 1
        if pairs > MAX_FRAME_PAIRS:
            return -1
    return k


@kernel
def depth_order(records, count, keys, order, keys_b, order_b):
    """Stable LSD radix sort of records by z; returns which of the two buffers holds the order (0 or 1).

    z is above 0, where float bits order like integers.
    Only the bits above the smallest key are sorted: two passes of 12 bits for any object of ordinary depth range.
    """
    if count == 0:
        return 0
    low, high = np.uint32(0xFFFFFFFF), np.uint32(0)
    bits = records.view(np.uint32)
    for i in range(count):
        key = bits[i, 9]
        keys[i], order[i] = key, i
        low, high = min(low, key), max(high, key)
    span, passes = high - low, 0
    histogram = np.empty(4096, np.int64)
    a, b, ia, ib = keys, keys_b, order, order_b
    while (span >> np.uint32(12 * passes)) != 0:
        shift = np.uint32(12 * passes)
        histogram[:] = 0
        for i in range(count):
            histogram[((a[i] - low) >> shift) & np.uint32(4095)] += 1
        total = 0
        for i in range(4096):
            total, histogram[i] = total + histogram[i], total
        for i in range(count):
            bucket = ((a[i] - low) >> shift) & np.uint32(4095)
            slot = histogram[bucket]
            histogram[bucket] = slot + 1
            b[slot], ib[slot] = a[i], ia[i]
        a, b, ia, ib = b, a, ib, ia
        passes += 1
        if passes == 3:
            break
    return passes & 1


@kernel
def fill_tile_lists(boxes, order, count, columns, tile_counts, tile_starts, lists):
    """Scatter record numbers to tiles in depth order; tile_starts is [tiles + 1], tile_counts becomes a cursor."""
    total = 0
    for t in range(tile_counts.shape[0]):
        tile_starts[t] = total
        total += tile_counts[t]
        tile_counts[t] = tile_starts[t]
    tile_starts[tile_counts.shape[0]] = total
    for i in range(count):
        k = order[i]
        for row in range(boxes[k, 2], boxes[k, 3] + 1):
            for column in range(boxes[k, 0], boxes[k, 1] + 1):
                t = row * columns + column
                lists[tile_counts[t]] = k
                tile_counts[t] += 1
