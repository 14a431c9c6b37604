"""A mesh as the ray caster's kernels read it: triangles, attributes of vertices, a table of materials, textures.

Colours are display values (sRGB) in [0, 1], as a record stores them. Positions are in the y-up world until
`rendering` has normalised them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

OPAQUE, MASK, BLEND = range(3)  # alpha modes, as in glTF
MAX_LEVELS = 16  # of a texture's pyramid: sides up to 32,768 texels


@dataclass(frozen=True)
class Material:
    """The appearance of a surface; a texture is RGBA [H, W, 4] uint8, row 0 on top."""

    rgba: tuple[float, float, float, float] = (0.8, 0.8, 0.8, 1.0)  # factor of texture and vertex colours
    metallic: float = 0.0
    roughness: float = 1.0
    emissive: tuple[float, float, float] = (0.0, 0.0, 0.0)
    alpha_mode: int = OPAQUE
    alpha_cutoff: float = 0.5  # of MASK
    base_texture: NDArray[np.uint8] | None = None
    metal_texture: NDArray[np.uint8] | None = None  # green: roughness, blue: metallic (glTF)
    emissive_texture: NDArray[np.uint8] | None = None


class Part(NamedTuple):
    """Triangles of one material. N vertices, F triangles."""

    vertices: NDArray[np.float64]  # [N, 3]
    faces: NDArray[np.int32]  # [F, 3]
    normals: NDArray[np.float32]  # [N, 3] unit, or zero where a triangle's own normal counts
    uv: NDArray[np.float32]  # [N, 2], origin at the texture's lower left
    colours: NDArray[np.float32]  # [N, 4] RGBA in [0, 1]
    material: Material


class Surface(NamedTuple):
    """All parts of an object, in the arrays that the kernels read."""

    vertices: NDArray[np.float64]  # [N, 3]
    faces: NDArray[np.int32]  # [F, 3]
    normals: NDArray[np.float32]  # [N, 3]
    uv: NDArray[np.float32]  # [N, 2]
    colours: NDArray[np.float32]  # [N, 4]
    face_material: NDArray[np.int32]  # [F] rows of `materials`
    uv_density: NDArray[np.float32]  # [F] texture sides per unit of length
    materials: NDArray[np.float64]  # [M, 14], see `_material_row`
    texels: NDArray[np.uint8]  # [K, 4] of all levels of all textures
    levels: NDArray[np.int64]  # [T, MAX_LEVELS, 3] first texel, height, width; height 0 = no such level


def assemble(parts: Sequence[Part]) -> Surface:
    """One surface from an object's parts."""
    textures: dict[int, int] = {}  # id of an image -> row of `levels`
    pyramids: list[list[NDArray[np.uint8]]] = []

    def texture_row(image: NDArray[np.uint8] | None) -> int:
        if image is None:
            return -1
        if id(image) not in textures:
            textures[id(image)] = len(pyramids)
            pyramids.append(_pyramid(image))
        return textures[id(image)]

    materials = [_material_row(part.material, texture_row) for part in parts]
    starts = np.cumsum([0] + [len(part.vertices) for part in parts[:-1]])
    texels, levels = _flatten(pyramids)
    return Surface(
        vertices=np.concatenate([part.vertices for part in parts]),
        faces=np.concatenate([part.faces + start for part, start in zip(parts, starts, strict=True)]).astype(np.int32),
        normals=np.concatenate([part.normals for part in parts]),
        uv=np.concatenate([part.uv for part in parts]),
        colours=np.concatenate([part.colours for part in parts]),
        face_material=np.repeat(np.arange(len(parts), dtype=np.int32), [len(part.faces) for part in parts]),
        uv_density=np.concatenate([_uv_density(part) for part in parts]),
        materials=np.array(materials, np.float64),
        texels=texels,
        levels=levels,
    )


def transformed(surface: Surface, matrix: NDArray[np.float64], centre: NDArray[np.float64] | None = None) -> Surface:
    """The surface with `centre` (the origin, if not given) moved to the origin and then mapped by `matrix` [3, 3]."""
    start = surface.vertices if centre is None else surface.vertices - centre
    normals = surface.normals @ np.linalg.inv(matrix)
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    scale = abs(float(np.linalg.det(matrix))) ** (1.0 / 3.0)  # of lengths, on average over directions
    return surface._replace(
        vertices=start @ matrix.T,
        normals=(normals / np.where(lengths > 0.0, lengths, 1.0)).astype(np.float32),
        uv_density=(surface.uv_density / scale).astype(np.float32),
    )


def extents(surface: Surface) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lowest and highest corner of the box around all triangles, [3] and [3]."""
    used = surface.vertices[np.unique(surface.faces)]
    return used.min(axis=0), used.max(axis=0)


def _material_row(material: Material, texture_row: Callable[[NDArray[np.uint8] | None], int]) -> list[float]:
    """RGBA 4, metallic, roughness, emissive 3, alpha mode, cutoff, rows of base, metal and emissive texture."""
    return [
        *material.rgba, material.metallic, material.roughness, *material.emissive,
        float(material.alpha_mode), material.alpha_cutoff,
        float(texture_row(material.base_texture)), float(texture_row(material.metal_texture)),
        float(texture_row(material.emissive_texture)),
    ]  # fmt: skip


def _uv_density(part: Part) -> NDArray[np.float32]:
    """Per triangle: the length in texture space of a unit of length in the world."""
    corners = part.vertices[part.faces]
    sides = corners[:, 1:] - corners[:, :1]  # [F, 2, 3]
    area = np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=1)
    uv = part.uv[part.faces].astype(np.float64)
    uv_sides = uv[:, 1:] - uv[:, :1]
    uv_area = np.abs(uv_sides[:, 0, 0] * uv_sides[:, 1, 1] - uv_sides[:, 0, 1] * uv_sides[:, 1, 0])
    return np.sqrt(uv_area / np.maximum(area, 1e-30)).astype(np.float32)


def _pyramid(image: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """The image and its halvings, colours weighted by alpha so that hidden colours do not bleed."""
    levels = [np.ascontiguousarray(image)]
    while max(levels[-1].shape[:2]) > 1 and len(levels) < MAX_LEVELS:
        height, width = (max(1, side // 2) for side in levels[-1].shape[:2])
        above = levels[-1].astype(np.float32)
        weighted = np.concatenate([above[..., :3] * above[..., 3:], above[..., 3:]], axis=-1)
        small = cv2.resize(weighted, (width, height), interpolation=cv2.INTER_AREA).reshape(height, width, 4)
        plain = cv2.resize(above, (width, height), interpolation=cv2.INTER_AREA).reshape(height, width, 4)
        alpha = small[..., 3:]
        colour = np.where(alpha > 0, small[..., :3] / np.maximum(alpha, 1e-6), plain[..., :3])
        levels.append(np.rint(np.concatenate([colour, alpha], axis=-1)).clip(0, 255).astype(np.uint8))
    return levels


def _flatten(pyramids: list[list[NDArray[np.uint8]]]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    levels = np.zeros((max(1, len(pyramids)), MAX_LEVELS, 3), np.int64)
    start = 0
    for row, pyramid in enumerate(pyramids):
        for level, image in enumerate(pyramid):
            height, width = image.shape[:2]
            levels[row, level] = start, height, width
            start += height * width
    flat = [image.reshape(-1, 4) for pyramid in pyramids for image in pyramid]
    return np.concatenate(flat) if flat else np.zeros((1, 4), np.uint8), levels


def to_srgb(linear: float) -> float:
    """A linear colour value as a display value (IEC 61966-2-1)."""
    return 12.92 * linear if linear <= 0.0031308 else 1.055 * math.pow(linear, 1.0 / 2.4) - 0.055
