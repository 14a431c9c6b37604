"""Gradients of projection (per camera) and of the covariance (once per object), by hand.

Notation of `kernels_project`: a, b are the two rows of J R (2x3, with the frustum clamp) and
V = (a, b) C (a, b)^T + eps2d.
"""

# mypy: allow-untyped-defs
# (numba infers the types of kernels; shapes are in their docstrings)

import math

from diffsplat.rasterize.jit import F, kernel
from diffsplat.rasterize.kernels_project import BLOCK

OBJECT_GRADS = 13  # means 3, covariance 6 (upper triangle, one parameter per entry), opacity, colour 3


@kernel
def project_backward(blocks, source, records, grad_records, cam, width, height, grads):
    """Add one camera's `grad_records` [K, GRADS] to `grads` [n, OBJECT_GRADS], row = index among the kept splats."""
    r00, r01, r02, r10, r11, r12, r20, r21, r22 = cam[0], cam[1], cam[2], cam[3], cam[4], cam[5], cam[6], cam[7], cam[8]
    t0, t1, t2, fx, fy, cx, cy = cam[9], cam[10], cam[11], cam[12], cam[13], cam[14], cam[15]
    margin_x, margin_y = F(0.3) * (F(0.5) * F(width) / fx), F(0.3) * (F(0.5) * F(height) / fy)
    hi_x, lo_x = (F(width) - cx) / fx + margin_x, -(cx / fx + margin_x)
    hi_y, lo_y = (F(height) - cy) / fy + margin_y, -(cy / fy + margin_y)
    for k in range(source.shape[0]):
        i = source[k]
        block, lane = blocks[i // BLOCK], i % BLOCK
        x0, y0, z0 = block[lane], block[BLOCK + lane], block[2 * BLOCK + lane]
        c00, c01, c02 = block[3 * BLOCK + lane], block[4 * BLOCK + lane], block[5 * BLOCK + lane]
        c11, c12, c22 = block[6 * BLOCK + lane], block[7 * BLOCK + lane], block[8 * BLOCK + lane]
        x = r00 * x0 + r01 * y0 + r02 * z0 + t0
        y = r10 * x0 + r11 * y0 + r12 * z0 + t1
        rz = F(1) / (r20 * x0 + r21 * y0 + r22 * z0 + t2)
        xz, yz = x * rz, y * rz
        px, py = min(max(xz, lo_x), hi_x), min(max(yz, lo_y), hi_y)
        gx, gy = fx * rz, fy * rz
        a0, a1, a2 = gx * (r00 - px * r20), gx * (r01 - px * r21), gx * (r02 - px * r22)
        b0, b1, b2 = gy * (r10 - py * r20), gy * (r11 - py * r21), gy * (r12 - py * r22)
        ca0, ca1, ca2 = c00 * a0 + c01 * a1 + c02 * a2, c01 * a0 + c11 * a1 + c12 * a2, c02 * a0 + c12 * a1 + c22 * a2
        cb0, cb1, cb2 = c00 * b0 + c01 * b1 + c02 * b2, c01 * b0 + c11 * b1 + c12 * b2, c02 * b0 + c12 * b1 + c22 * b2
        # conic K -> V: dV = -K dK K with K = [[A, B], [B, C]]; the record holds A/2, B, C/2, and so do its gradients.
        ka, kb, kc = F(2) * records[k, 2], records[k, 3], F(2) * records[k, 4]
        g_ka, g_kb, g_kc = F(0.5) * grad_records[k, 2], F(0.5) * grad_records[k, 3], F(0.5) * grad_records[k, 4]
        m00, m01 = ka * g_ka + kb * g_kb, ka * g_kb + kb * g_kc
        m10, m11 = kb * g_ka + kc * g_kb, kb * g_kb + kc * g_kc
        g00 = -(m00 * ka + m01 * kb)
        g01 = -(m00 * kb + m01 * kc + m10 * ka + m11 * kb)  # both off-diagonal entries: V01 is one parameter
        g11 = -(m10 * kb + m11 * kc)
        # V -> rows a, b
        da0, da1, da2 = F(2) * g00 * ca0 + g01 * cb0, F(2) * g00 * ca1 + g01 * cb1, F(2) * g00 * ca2 + g01 * cb2
        db0, db1, db2 = g01 * ca0 + F(2) * g11 * cb0, g01 * ca1 + F(2) * g11 * cb1, g01 * ca2 + F(2) * g11 * cb2
        # a = fx / z (R0 - px R2): through px where it is not clamped, and through 1 / z
        g_px = -gx * (r20 * da0 + r21 * da1 + r22 * da2)
        g_py = -gy * (r20 * db0 + r21 * db1 + r22 * db2)
        g_xz = fx * grad_records[k, 0] + (g_px if px == xz else F(0))
        g_yz = fy * grad_records[k, 1] + (g_py if py == yz else F(0))
        scale_terms = a0 * da0 + a1 * da1 + a2 * da2 + b0 * db0 + b1 * db1 + b2 * db2
        d0, d1 = g_xz * rz, g_yz * rz
        d2 = -rz * (g_xz * xz + g_yz * yz + scale_terms) + grad_records[k, 9]
        grads[i, 0] += r00 * d0 + r10 * d1 + r20 * d2
        grads[i, 1] += r01 * d0 + r11 * d1 + r21 * d2
        grads[i, 2] += r02 * d0 + r12 * d1 + r22 * d2
        # V -> 3-D covariance, upper triangle
        grads[i, 3] += g00 * a0 * a0 + g01 * a0 * b0 + g11 * b0 * b0
        grads[i, 4] += F(2) * (g00 * a0 * a1 + g11 * b0 * b1) + g01 * (a0 * b1 + a1 * b0)
        grads[i, 5] += F(2) * (g00 * a0 * a2 + g11 * b0 * b2) + g01 * (a0 * b2 + a2 * b0)
        grads[i, 6] += g00 * a1 * a1 + g01 * a1 * b1 + g11 * b1 * b1
        grads[i, 7] += F(2) * (g00 * a1 * a2 + g11 * b1 * b2) + g01 * (a1 * b2 + a2 * b1)
        grads[i, 8] += g00 * a2 * a2 + g01 * a2 * b2 + g11 * b2 * b2
        grads[i, 9] += grad_records[k, 5]
        grads[i, 10] += grad_records[k, 6]
        grads[i, 11] += grad_records[k, 7]
        grads[i, 12] += grad_records[k, 8]


@kernel
def covariance_backward(quats, scales, kept, grads, grad_quats, grad_scales):
    """Covariance part of `grads` [n, OBJECT_GRADS] -> grad_quats [N, 4], grad_scales [N, 3]; unseen rows stay.

    C = M M^T with M = R(q / |q|) diag(s): dM = (G + G^T) M, G holding each off-diagonal gradient once.
    """
    for n in range(kept.shape[0]):
        unseen = True
        for c in range(3, 9):
            unseen &= grads[n, c] == F(0)
        if unseen:
            continue  # saves time, and an absurd scale from becoming 0 * inf
        i = kept[n]
        w, x, y, z = quats[i, 0], quats[i, 1], quats[i, 2], quats[i, 3]
        inv = F(1) / math.sqrt(w * w + x * x + y * y + z * z)
        w, x, y, z = w * inv, x * inv, y * inv, z * inv
        sx, sy, sz = scales[i, 0], scales[i, 1], scales[i, 2]
        r00, r01, r02 = F(1) - F(2) * (y * y + z * z), F(2) * (x * y - w * z), F(2) * (x * z + w * y)
        r10, r11, r12 = F(2) * (x * y + w * z), F(1) - F(2) * (x * x + z * z), F(2) * (y * z - w * x)
        r20, r21, r22 = F(2) * (x * z - w * y), F(2) * (y * z + w * x), F(1) - F(2) * (x * x + y * y)
        s00, s11, s22 = F(2) * grads[n, 3], F(2) * grads[n, 6], F(2) * grads[n, 8]
        s01, s02, s12 = grads[n, 4], grads[n, 5], grads[n, 7]
        # columns of (G + G^T) R, before the scales
        p00, p10, p20 = (
            s00 * r00 + s01 * r10 + s02 * r20,
            s01 * r00 + s11 * r10 + s12 * r20,
            s02 * r00 + s12 * r10 + s22 * r20,
        )
        p01, p11, p21 = (
            s00 * r01 + s01 * r11 + s02 * r21,
            s01 * r01 + s11 * r11 + s12 * r21,
            s02 * r01 + s12 * r11 + s22 * r21,
        )
        p02, p12, p22 = (
            s00 * r02 + s01 * r12 + s02 * r22,
            s01 * r02 + s11 * r12 + s12 * r22,
            s02 * r02 + s12 * r12 + s22 * r22,
        )
        grad_scales[i, 0] = sx * (r00 * p00 + r10 * p10 + r20 * p20)
        grad_scales[i, 1] = sy * (r01 * p01 + r11 * p11 + r21 * p21)
        grad_scales[i, 2] = sz * (r02 * p02 + r12 * p12 + r22 * p22)
        xx, yy, zz = sx * sx, sy * sy, sz * sz  # dR = dM diag(s) = (G + G^T) R diag(s^2)
        d00, d10, d20 = p00 * xx, p10 * xx, p20 * xx
        d01, d11, d21 = p01 * yy, p11 * yy, p21 * yy
        d02, d12, d22 = p02 * zz, p12 * zz, p22 * zz
        gw = F(2) * (x * (d21 - d12) + y * (d02 - d20) + z * (d10 - d01))
        gx = F(2) * (y * (d01 + d10) + z * (d02 + d20) + w * (d21 - d12) - F(2) * x * (d11 + d22))
        gy = F(2) * (x * (d01 + d10) + z * (d12 + d21) + w * (d02 - d20) - F(2) * y * (d00 + d22))
        gz = F(2) * (x * (d02 + d20) + y * (d12 + d21) + w * (d10 - d01) - F(2) * z * (d00 + d11))
        along = gw * w + gx * x + gy * y + gz * z  # the length of q has no influence
        grad_quats[i, 0], grad_quats[i, 1] = (gw - along * w) * inv, (gx - along * x) * inv
        grad_quats[i, 2], grad_quats[i, 3] = (gy - along * y) * inv, (gz - along * z) * inv
