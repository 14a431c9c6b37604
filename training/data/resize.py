"""Views at training resolution: means over pixels, weighted by what covers them."""

import cv2
import numpy as np

from training.data.record import U16_MAX, BrokenRecord, PackedViews

_NO_NORMAL = 32768  # code of a normal's component that is 0


def shrink_views(packed: PackedViews, side: int) -> PackedViews:
    """Square views of `side` pixels.

    Colours and normals are means weighted by alpha, depth the mean of what is covered: nothing of the background
    reaches an edge's pixels, whose alpha then tells how much they hold.

    Raises:
        BrokenRecord: the images are not square, or smaller than `side`.
    """
    height, width = packed.rgba.shape[1:3]
    if height != width:
        raise BrokenRecord(f"images are {width} x {height} pixels large; square ones are needed")
    if height == side:
        return packed
    if height < side:
        raise BrokenRecord(f"images of {height} pixels are smaller than the {side} that training needs")
    alphas = packed.rgba[..., 3:].astype(np.float32) / 255.0  # [V, H, W, 1]
    small_alphas = _means(alphas, side)
    colours = _weighted(packed.rgba[..., :3], alphas, small_alphas, side)
    rgba = np.concatenate([np.rint(colours), np.rint(255.0 * small_alphas)], axis=-1).astype(np.uint8)
    values = packed.normal_depth
    has_values = values.shape[-1] > 0
    values = _shrink_normal_depth(values, alphas, small_alphas, side) if has_values else values[:, :side, :side]
    albedo, shine = (
        None if maps is None else np.rint(_weighted(maps, alphas, small_alphas, side)).astype(np.uint8)
        for maps in (packed.albedo, packed.metallic_roughness)
    )
    return PackedViews(rgba, values, packed.camera_to_world_zup, albedo, shine)


def _shrink_normal_depth(values: np.ndarray, alphas: np.ndarray, small_alphas: np.ndarray, side: int) -> np.ndarray:
    normals = 2.0 / U16_MAX * _weighted(values[..., :3], alphas, small_alphas, side) - 1.0
    lengths = np.linalg.norm(normals, axis=-1, keepdims=True)
    normals = np.where(lengths > 1e-3, normals / np.maximum(lengths, 1e-3), normals)
    codes = np.rint((0.5 * np.clip(normals, -1.0, 1.0) + 0.5) * U16_MAX)
    covered = (values[..., 3:] > 0).astype(np.float32)
    depths = np.rint(_weighted(values[..., 3:], covered, _means(covered, side), side))
    codes = np.where(small_alphas > 0.0, codes, _NO_NORMAL)
    return np.concatenate([codes, depths], axis=-1).astype(np.uint16)


def _weighted(maps: np.ndarray, weights: np.ndarray, small_weights: np.ndarray, side: int) -> np.ndarray:
    """Means of maps [V, H, W, C] by weights [V, H, W, 1]; 0 where all weights are."""
    sums = _means(maps.astype(np.float32) * weights, side)
    return np.divide(sums, small_weights, out=np.zeros_like(sums), where=small_weights > 0.0)


def _means(maps: np.ndarray, side: int) -> np.ndarray:
    """Means over the area of each smaller pixel. [V, H, W, C] -> [V, side, side, C]."""
    small = np.empty((len(maps), side, side, maps.shape[-1]), np.float32)
    for row, view in enumerate(maps):
        small[row] = cv2.resize(view, (side, side), interpolation=cv2.INTER_AREA).reshape(small.shape[1:])
    return small
