"""Mesh files made by the tests: primitives with textures, vertex colours and materials."""

from pathlib import Path

import numpy as np
import trimesh
from PIL import Image
from trimesh.visual.material import PBRMaterial

QUAD = np.array([[-0.5, -0.5, 0.0], [0.5, -0.5, 0.0], [0.5, 0.5, 0.0], [-0.5, 0.5, 0.0]])  # faces +z
QUAD_UV = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
QUAD_FACES = np.array([[0, 1, 2], [0, 2, 3]])


def quad(material: PBRMaterial, z: float = 0.0) -> trimesh.Trimesh:
    """A unit square in the plane of height `z`, seen from +z."""
    visual = trimesh.visual.TextureVisuals(uv=QUAD_UV, material=material)
    return trimesh.Trimesh(QUAD + [0.0, 0.0, z], QUAD_FACES, visual=visual, process=False)


def gradient(size: int = 64) -> Image.Image:
    """Red grows to the right, green upwards; blue is constant."""
    ramp = (np.arange(size) + 0.5) / size * 255.0
    pixels = np.zeros((size, size, 3))
    pixels[..., 0], pixels[..., 1], pixels[..., 2] = ramp, ramp[::-1, None], 51.0
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


def save(path: Path, *meshes: trimesh.Trimesh) -> Path:
    """Write meshes as one file; the suffix says the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    trimesh.Scene(list(meshes)).export(path)
    return path


def write_obj(folder: Path, name: str, material: str, texture: Image.Image | None = None) -> Path:
    """A textured square as OBJ with its MTL, as exporters write them."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"mtllib {name}.mtl", "usemtl surface"]
    lines += ["v " + " ".join(map(str, corner)) for corner in QUAD]
    lines += ["vt " + " ".join(map(str, corner)) for corner in QUAD_UV]
    lines += ["f 1/1 2/2 3/3 4/4"]
    (folder / f"{name}.obj").write_text("\n".join(lines) + "\n")
    (folder / f"{name}.mtl").write_text("newmtl surface\n" + material)
    if texture is not None:
        texture.save(folder / "texture.png")
    return folder / f"{name}.obj"
