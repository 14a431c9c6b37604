"""The readable rasterizer: the formulas in plain torch, differentiable by autograd, any float dtype.

It has two forms. `composite_dense`, every pixel times every splat, is the oracle of the tests. `composite_tiled`, a
fair pure-torch implementation (8x8 tiles, 16 splats at a time, only tiles with work left), is the yardstick of the
benchmark. Conventions and thresholds are those of gsplat 1.5.3, as described in the package's docstring.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from diffsplat.rasterize import rules

ALPHA_MIN, ALPHA_MAX, STOP = float(rules.ALPHA_MIN), float(rules.ALPHA_MAX), float(rules.STOP)


class Projected(NamedTuple):
    """Splats of one camera, culled ones left out."""

    means2d: Tensor  # [K, 2] pixels
    depths: Tensor  # [K]
    conics: Tensor  # [K, 3] A, B, C
    covars2d: Tensor  # [K, 3] V00, V01, V11
    indices: Tensor  # [K] into the given splats, front to back, equal depths in their own order


class Sums(NamedTuple):
    """Composited image before the background."""

    features: Tensor  # [H, W, 4] weighted sums of r, g, b, z
    transmittance: Tensor  # [H, W]


def covariances(quats: Tensor, scales: Tensor) -> Tensor:
    """Quats [N, 4] wxyz of any length, scales [N, 3] -> [N, 3, 3]."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rotation = torch.stack(
        [
            1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
            2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
            2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
        ],
        -1,
    ).reshape(-1, 3, 3)  # fmt: skip
    scaled = rotation * scales[:, None, :]
    return scaled @ scaled.mT


def project(
    means: Tensor,  # [N, 3]
    covars: Tensor,  # [N, 3, 3]
    opacities: Tensor,  # [N]
    viewmat: Tensor,  # [4, 4]
    intrinsics: Tensor,  # [3, 3]
    width: int,
    height: int,
    near_plane: float,
    far_plane: float,
    eps2d: float,
) -> Projected:
    """One camera: cull, project (EWA with the clamped Jacobian), order by depth."""
    rotation, translation = viewmat[:3, :3], viewmat[:3, 3]
    center = means @ rotation.T + translation
    visible = (center[:, 2] >= near_plane) & (center[:, 2] <= far_plane) & (opacities >= ALPHA_MIN)
    index = visible.nonzero().squeeze(1)
    x, y, z = center[index].unbind(-1)
    fx, fy, cx, cy = intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2], intrinsics[1, 2]
    margin_x, margin_y = 0.15 * width / fx, 0.15 * height / fy
    px = torch.minimum(torch.maximum(x / z, -(cx / fx + margin_x)), (width - cx) / fx + margin_x)
    py = torch.minimum(torch.maximum(y / z, -(cy / fy + margin_y)), (height - cy) / fy + margin_y)
    rows = torch.stack(
        [
            (fx / z)[:, None] * (rotation[0] - px[:, None] * rotation[2]),
            (fy / z)[:, None] * (rotation[1] - py[:, None] * rotation[2]),
        ],
        1,
    )  # [K, 2, 3]
    flat = rows @ covars[index] @ rows.mT
    v00, v01, v11 = flat[:, 0, 0] + eps2d, flat[:, 0, 1], flat[:, 1, 1] + eps2d
    det = v00 * v11 - v01 * v01
    alive = det > 0
    safe = torch.where(alive, det, torch.ones_like(det))
    conics = torch.stack([v11 / safe, -v01 / safe, v00 / safe], -1)
    means2d = torch.stack([fx * x / z + cx, fy * y / z + cy], -1)
    order = torch.argsort(z.detach(), stable=True)
    order = order[alive[order]]
    return Projected(means2d[order], z[order], conics[order], torch.stack([v00, v01, v11], -1)[order], index[order])


def alphas_at(points: Tensor, means2d: Tensor, conics: Tensor, opacities: Tensor) -> Tensor:
    """Points [..., P, 2], splats [..., K, ...] -> clamped and thresholded alpha [..., P, K]."""
    d = means2d[..., None, :, :] - points[..., :, None, :]
    a, b, c = (conics[..., None, :, i] for i in range(3))
    s = 0.5 * (a * d[..., 0] ** 2 + c * d[..., 1] ** 2) + b * d[..., 0] * d[..., 1]
    alpha = (opacities[..., None, :] * torch.exp(-s.clamp(min=0))).clamp(max=ALPHA_MAX)
    return torch.where(alpha >= ALPHA_MIN, alpha, torch.zeros_like(alpha))


def composite_dense(seen: Projected, features: Tensor, opacities: Tensor, width: int, height: int) -> Sums:
    """Every pixel times every splat; features [K, 4] and opacities [K] in the order of `seen`."""
    rows, columns = torch.arange(height, dtype=features.dtype) + 0.5, torch.arange(width, dtype=features.dtype) + 0.5
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    points = torch.stack([x, y], -1).reshape(-1, 2)
    sums, transmittances = [], []
    for part in points.split(1024):
        alpha = alphas_at(part, seen.means2d, seen.conics, opacities)  # [P, K]
        after = torch.cumprod(1 - alpha, -1)
        alpha = torch.where(after > STOP, alpha, torch.zeros_like(alpha))  # the stopping splat and all after it
        after = torch.cumprod(1 - alpha, -1)
        before = torch.cat([after.new_ones(len(part), 1), after], -1)
        sums.append((alpha * before[:, :-1]) @ features)
        transmittances.append(before[:, -1])
    return Sums(
        torch.cat(sums).reshape(height, width, features.shape[1]), torch.cat(transmittances).reshape(height, width)
    )


def composite_tiled(
    seen: Projected, features: Tensor, opacities: Tensor, width: int, height: int, tile: int = 8, chunk: int = 16
) -> Sums:
    """Tiles of `tile` pixels, `chunk` splats at a time for all tiles that still have splats and light."""
    columns, rows = -(-width // tile), -(-height // tile)
    device, dtype = features.device, features.dtype
    with torch.no_grad():
        extent = torch.sqrt(2 * torch.log(opacities / ALPHA_MIN).clamp(min=0))[:, None]
        half = extent * torch.sqrt(seen.covars2d[:, [0, 2]]) * 1.0005 + 0.01
        limit = torch.tensor([width - 1, height - 1], device=device)
        first = (seen.means2d - half - 0.5).ceil().clamp(-1, 1e6).long().clamp(min=0)
        last = torch.minimum((seen.means2d + half - 0.5).floor().clamp(-1, 1e6).long(), limit)
        drawn = (first <= last).all(-1)
        first, span = first // tile, torch.where(drawn[:, None], last // tile - first // tile + 1, 0)
        pairs = span.prod(-1)
        splat = torch.repeat_interleave(torch.arange(len(pairs), device=device), pairs)
        within = torch.arange(len(splat), device=device) - torch.repeat_interleave(pairs.cumsum(0) - pairs, pairs)
        tiles = (first[splat, 1] + within // span[splat, 0]) * columns + first[splat, 0] + within % span[splat, 0]
        by_tile = torch.argsort(tiles, stable=True)
        splat = splat[by_tile]
        counts = torch.bincount(tiles, minlength=rows * columns)
        starts = counts.cumsum(0) - counts
    j = torch.arange(tile * tile, device=device)
    offsets = torch.stack([j % tile, j // tile], -1).to(dtype) + 0.5
    t = torch.arange(rows * columns, device=device)
    corners = torch.stack([t % columns, t // columns], -1).to(dtype) * tile
    total = torch.zeros(rows * columns, tile * tile, features.shape[1], device=device, dtype=dtype)
    light = torch.ones(rows * columns, tile * tile, device=device, dtype=dtype)
    done = torch.zeros(rows * columns, tile * tile, device=device, dtype=torch.bool)
    for step in range(0, int(counts.max()) if len(splat) else 0, chunk):
        active = ((counts > step) & ~done.all(-1)).nonzero().squeeze(1)
        if len(active) == 0:
            break
        slots = step + torch.arange(chunk, device=device)
        valid = slots < counts[active, None]
        ids = splat[(starts[active, None] + slots).clamp(max=len(splat) - 1)]  # [A, chunk]
        points = corners[active, None] + offsets
        alpha = alphas_at(points, seen.means2d[ids], seen.conics[ids], opacities[ids] * valid)
        alpha = torch.where(done[active, :, None], torch.zeros_like(alpha), alpha)
        before = light[active]
        after = before[..., None] * torch.cumprod(1 - alpha, -1)
        stopped = after <= STOP
        alpha = torch.where(stopped, torch.zeros_like(alpha), alpha)
        after = before[..., None] * torch.cumprod(1 - alpha, -1)
        weights = alpha * torch.cat([before[..., None], after[..., :-1]], -1)
        total = total.index_add(0, active, weights @ features[ids])
        light = light.index_copy(0, active, after[..., -1])
        done = done.index_copy(0, active, done[active] | stopped.any(-1))

    def image(values: Tensor) -> Tensor:
        grid = values.reshape(rows, columns, tile, tile, -1).transpose(1, 2)
        return grid.reshape(rows * tile, columns * tile, -1)[:height, :width]

    return Sums(image(total), image(light)[..., 0])


def rasterize_reference(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    *,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    eps2d: float = 0.3,
    backgrounds: Tensor | None = None,
    render_mode: str = "RGB",
    covars: Tensor | None = None,
    tiled: bool = False,
) -> tuple[Tensor, Tensor]:
    """`rasterization`'s arguments; returns (render_colors [C, H, W, 3 or 4], render_alphas [C, H, W, 1])."""
    if covars is None:
        covars = covariances(quats, scales)
    else:
        covars = covars.triu() + covars.triu(1).mT  # gsplat reads the upper triangle
    images, alphas = [], []
    for c in range(viewmats.shape[0]):
        seen = project(means, covars, opacities, viewmats[c], Ks[c], width, height, near_plane, far_plane, eps2d)
        features = torch.cat([colors[seen.indices], seen.depths[:, None]], -1)
        sums = (composite_tiled if tiled else composite_dense)(seen, features, opacities[seen.indices], width, height)
        alpha = 1 - sums.transmittance[..., None]
        rgb, depth = sums.features[..., :3], sums.features[..., 3:]
        if backgrounds is not None:
            rgb = rgb + sums.transmittance[..., None] * backgrounds[c]
        if render_mode == "RGB+ED":
            depth = depth / alpha.clamp(min=1e-10)
        images.append(rgb if render_mode == "RGB" else torch.cat([rgb, depth], -1))
        alphas.append(alpha)
    return torch.stack(images), torch.stack(alphas)
