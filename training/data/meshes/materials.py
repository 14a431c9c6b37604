"""trimesh's materials -> ours: glTF (metallic-roughness) and simple ones (MTL); what cannot be kept becomes a note."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from trimesh.visual.material import PBRMaterial, SimpleMaterial

from training.data.meshes.surface import BLEND, MASK, OPAQUE, Material, to_srgb

Note = Callable[[str], None]

_ALPHA_MODES = {"OPAQUE": OPAQUE, "MASK": MASK, "BLEND": BLEND}
_PLAIN_MTL = 0.8  # diffuse grey of an MTL material without `Kd`


def material_of(source: Any, folder: Path, note: Note) -> Material:
    """The appearance that a trimesh material describes.

    Args:
        source: glTF's (PBRMaterial) or an MTL file's (SimpleMaterial).
        folder: Where textures lie that trimesh does not read.
        note: Told what of the material is left out.

    Raises:
        ValueError: a texture cannot be decoded.
    """
    if isinstance(source, PBRMaterial):
        return _from_gltf(source, note)
    if isinstance(source, SimpleMaterial):
        return _from_mtl(source, folder, note)
    raise ValueError(f"material of type {type(source).__name__} is not supported; glTF and MTL materials are")


def _from_gltf(source: PBRMaterial, note: Note) -> Material:
    """Factors of glTF are linear, its textures' colours are display values; absent factors are 1, as specified."""
    factor = source.baseColorFactor
    linear = (1.0, 1.0, 1.0, 1.0) if factor is None else tuple(float(value) / 255.0 for value in factor)
    mode = _ALPHA_MODES[source.alphaMode or "OPAQUE"]
    if source.normalTexture is not None:
        note("normal textures are ignored")
    emissive = (0.0, 0.0, 0.0) if source.emissiveFactor is None else source.emissiveFactor
    red, green, blue = (to_srgb(float(value)) for value in emissive)
    return Material(
        rgba=(to_srgb(linear[0]), to_srgb(linear[1]), to_srgb(linear[2]), linear[3]),
        metallic=1.0 if source.metallicFactor is None else float(source.metallicFactor),
        roughness=1.0 if source.roughnessFactor is None else float(source.roughnessFactor),
        emissive=(red, green, blue),
        alpha_mode=mode,
        alpha_cutoff=0.5 if source.alphaCutoff is None else float(source.alphaCutoff),
        base_texture=_pixels(source.baseColorTexture),
        metal_texture=_pixels(source.metallicRoughnessTexture),
        emissive_texture=_pixels(source.emissiveTexture),
    )


def _from_mtl(source: SimpleMaterial, folder: Path, note: Note) -> Material:
    """MTL values are display values. As in Blender, a texture replaces `Kd`, which exporters leave at any grey."""
    values = source.kwargs
    texture = _pixels(source.image)
    if texture is not None:  # before the opacity is added, which leaves `Kd` as it is
        diffuse = (1.0, 1.0, 1.0)
    else:
        diffuse = _triple(values.get("kd", source.diffuse[:3] / 255.0 if "kd" not in values else None), _PLAIN_MTL)
    opacity = _number(values.get("d"), 1.0 - _number(values.get("tr"), 0.0))
    if "map_d" in values:
        texture = _with_opacity(texture, folder / values["map_d"][-1].replace("\\", "/"), note)
    if "map_bump" in values or "bump" in values:
        note("bump maps are ignored")
    see_through = opacity < 1.0 or (texture is not None and bool((texture[..., 3] < 255).any()))
    shininess = max(float(source.glossiness), 0.0)
    return Material(
        rgba=(*diffuse, min(max(opacity, 0.0), 1.0)),
        metallic=_number(values.get("pm"), 0.0),
        roughness=_number(values.get("pr"), float((2.0 / (shininess + 2.0)) ** 0.25)),
        emissive=_triple(values.get("ke"), 0.0),
        alpha_mode=BLEND if see_through else OPAQUE,
        base_texture=texture,
    )


def _pixels(image: Any) -> NDArray[np.uint8] | None:
    """A PIL image as RGBA [H, W, 4]."""
    if image is None:
        return None
    try:
        return np.array(image.convert("RGBA"))
    except (OSError, SyntaxError, ValueError) as error:  # PIL reports damaged files by any of these
        name = image.info.get("file_path", "inside the file") if hasattr(image, "info") else "inside the file"
        raise ValueError(f"texture {name} cannot be decoded: {error}") from error


def _with_opacity(texture: NDArray[np.uint8] | None, path: Path, note: Note) -> NDArray[np.uint8] | None:
    """The texture, or a white one, with the opacity of a `map_d`: its alpha channel if it has one, else its grey."""
    if not path.is_file():
        note(f"{path.name} is missing")
        return texture
    with Image.open(path) as image:
        try:
            opacity = image.getchannel("A") if "A" in image.getbands() else image.convert("L")
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"texture {path.name} cannot be decoded: {error}") from error
    if texture is None:
        texture = np.full((opacity.height, opacity.width, 4), 255, np.uint8)
    mixed = texture.copy()
    mixed[..., 3] = np.array(opacity.resize((texture.shape[1], texture.shape[0]), Image.Resampling.BILINEAR))
    return mixed


def _number(value: Any, default: float) -> float:
    """A value of an MTL line, which trimesh keeps as text; options before it are skipped."""
    if value is None:
        return default
    try:
        return float(value[-1] if isinstance(value, list) else value)
    except (TypeError, ValueError, IndexError):
        return default


def _triple(value: Any, default: float) -> tuple[float, float, float]:
    try:
        red, green, blue = (min(max(float(part), 0.0), 1.0) for part in value)
    except (TypeError, ValueError):
        return default, default, default
    return red, green, blue
