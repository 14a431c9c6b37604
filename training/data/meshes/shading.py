"""What a ray sees where it hits, and what a pixel keeps of its rays: numba kernels.

Light: the environment's radiance is linear in the direction, E(d) = ambient + (1 - ambient) (1 + d . light) / 2. A
dielectric shows its colour times E(normal), which is the light of the procedural objects; a metal shows it times E of
the mirrored ray, blended into E(normal) by its roughness. There are no shadows.
"""

import math

import numpy as np
from numpy.typing import NDArray

from training.data.meshes.surface import BLEND, MASK
from training.data.procedural.jit import compiled
from training.data.procedural.render import AMBIENT

_HALF = 0.5  # depth and normal are those of the surface that takes the last of this share of the light


@compiled
def _texel(
    texels: NDArray[np.uint8],
    levels: NDArray[np.int64],
    row: int,
    u: float,
    v: float,
    sides: float,
    out: NDArray[np.float64],
) -> None:
    """Bilinear RGBA in [0, 1] at (u, v), repeating; `sides`: texture sides per sample, which chooses the level."""
    texels_per_sample = sides * math.sqrt(levels[row, 0, 1] * levels[row, 0, 2])
    level = 0
    while texels_per_sample >= 2.0 and level + 1 < levels.shape[1] and levels[row, level + 1, 1] > 0:
        texels_per_sample *= 0.5
        level += 1
    start, height, width = levels[row, level, 0], levels[row, level, 1], levels[row, level, 2]
    x = u * width - 0.5
    y = (1.0 - v) * height - 0.5
    x0, y0 = math.floor(x), math.floor(y)
    fx, fy = x - x0, y - y0
    left, right = int(x0) % width, int(x0 + 1) % width
    top, bottom = int(y0) % height, int(y0 + 1) % height
    for c in range(4):
        upper = texels[start + top * width + left, c] * (1.0 - fx) + texels[start + top * width + right, c] * fx
        lower = texels[start + bottom * width + left, c] * (1.0 - fx) + texels[start + bottom * width + right, c] * fx
        out[c] = (upper * (1.0 - fy) + lower * fy) / 255.0


@compiled
def shade_layer(
    hit_rays: NDArray[np.int64],
    hit_faces: NDArray[np.int32],
    hit_u: NDArray[np.float32],
    hit_v: NDArray[np.float32],
    hit_t: NDArray[np.float64],
    directions: NDArray[np.float32],
    vertices: NDArray[np.float64],
    faces: NDArray[np.int32],
    normals: NDArray[np.float32],
    uv: NDArray[np.float32],
    colours: NDArray[np.float32],
    face_material: NDArray[np.int32],
    uv_density: NDArray[np.float32],
    materials: NDArray[np.float64],
    texels: NDArray[np.uint8],
    levels: NDArray[np.int64],
    light: NDArray[np.float64],
    spacing: float,
    samples: NDArray[np.float64],
) -> None:
    """Add one surface per ray behind those that `samples` holds already.

    Args:
        hit_rays: [R] rows of `directions` and `samples` that hit something.
        hit_faces: [R] triangles.
        hit_u: [R] weight of the triangle's second corner.
        hit_v: [R] weight of the third.
        hit_t: [R] planar depth.
        directions: [S, 3] in the world; not normalised.
        vertices: [N, 3]; this and the next nine are the fields of `Surface`.
        faces: [F, 3].
        normals: [N, 3].
        uv: [N, 2].
        colours: [N, 4].
        face_material: [F].
        uv_density: [F].
        materials: [M, 14].
        texels: [K, 4].
        levels: [T, MAX_LEVELS, 3].
        light: [3] unit, towards the light.
        spacing: Distance of neighbouring samples on a plane at depth 1.
        samples: [S, 13] colour 3, albedo 3, metallic, roughness, all times their share; transmittance; normal 3, depth.
    """
    base = np.empty(4)
    texel = np.empty(4)
    for k in range(hit_rays.shape[0]):
        ray, face = hit_rays[k], hit_faces[k]
        a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
        wb, wc = float(hit_u[k]), float(hit_v[k])
        wa = 1.0 - wb - wc
        m = materials[face_material[face]]
        tu = wa * uv[a, 0] + wb * uv[b, 0] + wc * uv[c, 0]
        tv = wa * uv[a, 1] + wb * uv[b, 1] + wc * uv[c, 1]
        sides = uv_density[face] * spacing * hit_t[k]
        for i in range(4):
            base[i] = m[i] * (wa * colours[a, i] + wb * colours[b, i] + wc * colours[c, i])
        if m[11] >= 0:
            _texel(texels, levels, int(m[11]), tu, tv, sides, texel)
            for i in range(4):
                base[i] *= texel[i]
        if m[9] == MASK:
            alpha = 1.0 if base[3] >= m[10] else 0.0
        elif m[9] == BLEND:
            alpha = base[3]
        else:
            alpha = 1.0
        if alpha <= 0.0:
            continue
        metallic, roughness = m[4], m[5]
        if m[12] >= 0:
            _texel(texels, levels, int(m[12]), tu, tv, sides, texel)
            roughness *= texel[1]
            metallic *= texel[2]

        # The triangle's own normal, turned towards the camera; then the smooth one, turned to its side.
        dx, dy, dz = float(directions[ray, 0]), float(directions[ray, 1]), float(directions[ray, 2])
        e1x, e1y, e1z = (
            vertices[b, 0] - vertices[a, 0],
            vertices[b, 1] - vertices[a, 1],
            vertices[b, 2] - vertices[a, 2],
        )
        e2x, e2y, e2z = (
            vertices[c, 0] - vertices[a, 0],
            vertices[c, 1] - vertices[a, 1],
            vertices[c, 2] - vertices[a, 2],
        )
        gx, gy, gz = e1y * e2z - e1z * e2y, e1z * e2x - e1x * e2z, e1x * e2y - e1y * e2x
        norm = 1.0 / max(math.sqrt(gx * gx + gy * gy + gz * gz), 1e-300)
        if gx * dx + gy * dy + gz * dz > 0.0:
            norm = -norm
        gx, gy, gz = gx * norm, gy * norm, gz * norm
        nx = wa * normals[a, 0] + wb * normals[b, 0] + wc * normals[c, 0]
        ny = wa * normals[a, 1] + wb * normals[b, 1] + wc * normals[c, 1]
        nz = wa * normals[a, 2] + wb * normals[b, 2] + wc * normals[c, 2]
        length = math.sqrt(nx * nx + ny * ny + nz * nz)
        if length < 1e-3:
            nx, ny, nz = gx, gy, gz
        else:
            if nx * gx + ny * gy + nz * gz < 0.0:
                length = -length
            nx, ny, nz = nx / length, ny / length, nz / length

        lit = 0.5 + 0.5 * (nx * light[0] + ny * light[1] + nz * light[2])
        if metallic > 0.0:
            along = (dx * nx + dy * ny + dz * nz) / math.sqrt(dx * dx + dy * dy + dz * dz)
            size = math.sqrt(dx * dx + dy * dy + dz * dz)
            mirrored = 0.0
            mirrored += (dx / size - 2.0 * along * nx) * light[0]
            mirrored += (dy / size - 2.0 * along * ny) * light[1]
            mirrored += (dz / size - 2.0 * along * nz) * light[2]
            lit += metallic * (1.0 - roughness) * (0.5 + 0.5 * mirrored - lit)
        shade = AMBIENT + (1.0 - AMBIENT) * lit

        sample = samples[ray]
        before = sample[8]
        share = before * alpha
        texel[:3] = 1.0
        if m[13] >= 0:
            _texel(texels, levels, int(m[13]), tu, tv, sides, texel)
        for i in range(3):
            sample[i] += share * min(1.0, base[i] * shade + m[6 + i] * texel[i])
            sample[3 + i] += share * base[i]
        sample[6] += share * metallic
        sample[7] += share * roughness
        sample[8] = before - share
        if before == 1.0 or (before > _HALF and sample[8] <= _HALF):
            sample[9], sample[10], sample[11], sample[12] = nx, ny, nz, hit_t[k]


@compiled
def resolve(
    samples: NDArray[np.float64],
    first_row: int,
    first_column: int,
    centre_only: bool,
    maps: NDArray[np.float32],
) -> None:
    """Means over the samples of each pixel.

    Args:
        samples: [rows, s, columns, s, 13] of a rectangle of pixels, as `shade_layer` left them.
        first_row: Of the rectangle.
        first_column: Likewise.
        centre_only: Normal and depth are those of the central sample where it hits, not the mean.
        maps: [H, W, 13] colour 3, alpha, albedo 3, metallic, roughness, normal 3, depth; zero before.
    """
    rows, side, columns = samples.shape[0], samples.shape[1], samples.shape[2]
    middle = side // 2
    for i in range(rows):
        for j in range(columns):
            total = sx = sy = sz = sd = 0.0
            out = maps[first_row + i, first_column + j]
            for p in range(side):
                for q in range(side):
                    sample = samples[i, p, j, q]
                    alpha = 1.0 - sample[8]
                    if alpha <= 0.0:
                        continue
                    total += alpha
                    for n in range(3):
                        out[n] += sample[n]
                        out[4 + n] += sample[3 + n]
                    out[7] += sample[6]
                    out[8] += sample[7]
                    sx += alpha * sample[9]
                    sy += alpha * sample[10]
                    sz += alpha * sample[11]
                    sd += alpha * sample[12]
            if total == 0.0:
                continue
            for n in range(9):
                if n != 3:
                    out[n] /= total
            out[3] = total / (side * side)
            centre = samples[i, middle, j, middle]
            if centre_only and centre[8] < 1.0:
                sx, sy, sz, sd = centre[9], centre[10], centre[11], centre[12]
                out[12] = sd
            else:
                out[12] = sd / total
            norm = math.sqrt(sx * sx + sy * sy + sz * sz)
            if norm > 0.0:
                out[9], out[10], out[11] = sx / norm, sy / norm, sz / norm
