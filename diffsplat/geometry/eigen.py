"""Eigenvectors of many symmetric 3 x 3 matrices, on any device and without waiting for it.

`torch.linalg.eigh` makes the host wait on CUDA, and cuSOLVER takes only some 32,000 matrices at once; an object has up
to 262,144.
"""

import torch
from torch import Tensor

SWEEPS = 6  # of Jacobi rotations; float64 is exact after five
_PAIRS = ((0, 1), (0, 2), (1, 2))


def eigenvectors_of_symmetric(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Cyclic Jacobi method (Golub & Van Loan, 8.5).

    Args:
        matrices: [..., 3, 3] symmetric float64; the upper triangle is read.

    Returns:
        Eigenvalues [..., 3], growing, and eigenvectors as columns of rotations [..., 3, 3], determinant +1.
    """
    upper = {(i, j): matrices[..., i, j] for i in range(3) for j in range(i, 3)}
    columns = list(torch.diag_embed(torch.ones_like(matrices[..., 0])).unbind(-1))
    for p, q in _PAIRS * SWEEPS:
        (r,) = {0, 1, 2} - {p, q}
        off, one, two = upper[p, q], upper[p, p], upper[q, q]
        # tan of the angle that makes the entry zero; the smaller one of two, and 0 where it is zero already
        theta = (two - one) / torch.where(off == 0, 1.0, 2 * off)
        tan = torch.where(
            off == 0, 0.0, torch.where(theta < 0, -1.0, 1.0) / (theta.abs() + torch.hypot(theta, theta.new_ones(())))
        )
        cos = torch.rsqrt(tan * tan + 1)
        sin = tan * cos
        upper[p, p], upper[q, q], upper[p, q] = one - tan * off, two + tan * off, torch.zeros_like(off)
        pr, qr = (min(p, r), max(p, r)), (min(q, r), max(q, r))
        upper[pr], upper[qr] = cos * upper[pr] - sin * upper[qr], sin * upper[pr] + cos * upper[qr]
        cos, sin = cos[..., None], sin[..., None]
        columns[p], columns[q] = cos * columns[p] - sin * columns[q], sin * columns[p] + cos * columns[q]
    values = torch.stack([upper[0, 0], upper[1, 1], upper[2, 2]], dim=-1)
    values, order = values.sort(dim=-1)
    vectors = torch.stack(columns, dim=-1).gather(-1, order[..., None, :].expand_as(matrices))
    # sorting may mirror the axes: the last one is what the other two leave
    last = torch.linalg.cross(vectors[..., 0], vectors[..., 1], dim=-1)
    return values, torch.cat([vectors[..., :2], last[..., None]], dim=-1)
