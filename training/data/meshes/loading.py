"""Mesh files (.glb .gltf .obj .ply .stl) -> surfaces, through trimesh."""

import dataclasses
import logging
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import trimesh
from numpy.typing import NDArray

from training.data.meshes.face_count import declared_faces
from training.data.meshes.materials import Note, material_of
from training.data.meshes.surface import BLEND, OPAQUE, Material, Part, Surface, assemble, to_srgb

SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl")
MAX_FACES = 5_000_000  # some 3 GB of memory while they are loaded

Up = Literal["auto", "y", "z"]

_Z_UP_SUFFIXES = (".ply", ".stl")  # scanners and CAD; glTF says y, and exporters of OBJ write y
_LINEAR_SUFFIXES = (".glb", ".gltf")  # vertex colours are linear there
_Y_UP_FROM_Z_UP = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])

logging.getLogger("trimesh").setLevel(logging.ERROR)  # what it could not read is noted or raised here


class MeshError(ValueError):
    """A mesh that cannot be rendered; the message says why, without the file's name."""


class LoadedMesh(NamedTuple):
    """A mesh and what of it was left out."""

    surface: Surface  # y-up world, any size
    notes: tuple[str, ...]


def load_mesh(path: Path, up: Up = "auto", max_faces: int = MAX_FACES) -> LoadedMesh:
    """Read a file with its textures, materials and vertex colours.

    Args:
        path: One of `SUFFIXES`; files that it names are looked for beside it.
        up: Axis that points up; "auto" takes z for .ply and .stl, y for the others.
        max_faces: More are refused, where possible before the file is loaded.

    Raises:
        MeshError: no faces, too many, or not readable.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise MeshError(f"suffix {suffix!r} is not one of {' '.join(SUFFIXES)}")
    try:
        _check_faces(declared_faces(path), max_faces)
        scene = trimesh.load_scene(path, process=False)
    except MeshError:
        raise
    except Exception as error:  # readers of broken files raise anything: struct.error, KeyError, UnicodeDecodeError
        raise MeshError(f"unreadable: {type(error).__name__}: {error}") from error
    notes: dict[str, None] = {}  # a set that keeps its order

    def note(text: str) -> None:
        notes[text] = None

    for missing in _missing_files(path) if suffix == ".obj" else ():
        note(f"{missing} is missing")
    z_up = up == "z" or (up == "auto" and suffix in _Z_UP_SUFFIXES)
    turn = _Y_UP_FROM_Z_UP if z_up else np.eye(3)
    parts = []
    for node in scene.graph.nodes_geometry:
        transform, name = scene.graph[node]
        mesh = scene.geometry[name]
        if isinstance(mesh, trimesh.Trimesh) and len(mesh.faces):
            parts.append(_part(_with_vertex_colours(mesh), turn, transform, path, note))
    faces = sum(len(part.faces) for part in parts)
    if not faces:
        raise MeshError("no faces")
    _check_faces(faces, max_faces)
    return LoadedMesh(assemble(parts), tuple(notes))


def _check_faces(count: int | None, most: int) -> None:
    if count == 0:
        raise MeshError("no faces")
    if count is not None and count > most:
        raise MeshError(f"{count:,} faces, at most {most:,} are allowed (--max-faces)")


def _with_vertex_colours(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """The mesh itself, or one whose triangles share no vertex, where each triangle has its own colour."""
    visual: Any = mesh.visual
    if isinstance(visual, trimesh.visual.TextureVisuals) or visual.kind != "face":
        return mesh
    return trimesh.Trimesh(
        vertices=np.asarray(mesh.vertices)[np.asarray(mesh.faces)].reshape(-1, 3),
        faces=np.arange(3 * len(mesh.faces)).reshape(-1, 3),
        vertex_colors=np.repeat(np.asarray(visual.face_colors), 3, axis=0),
        process=False,
    )


def _part(
    mesh: trimesh.Trimesh, turn: NDArray[np.float64], transform: NDArray[np.float64], path: Path, note: Note
) -> Part:
    """One placed geometry of a file's scene."""
    linear = path.suffix.lower() in _LINEAR_SUFFIXES
    count = len(mesh.vertices)
    matrix = turn @ np.asarray(transform)[:3, :3]
    vertices = np.asarray(mesh.vertices, np.float64) @ matrix.T + turn @ np.asarray(transform)[:3, 3]
    faces = np.asarray(mesh.faces, np.int64)
    if faces.min() < 0 or faces.max() >= count:
        raise MeshError(f"a face names vertex {int(faces.max())} of {count}")
    if not np.isfinite(vertices[faces.ravel()]).all():
        raise MeshError("a vertex is not finite")
    normals = np.zeros((count, 3))
    if "vertex_normals" in mesh._cache and abs(np.linalg.det(matrix)) > 0:  # else trimesh would make them up
        normals = np.asarray(mesh.vertex_normals, np.float64) @ np.linalg.inv(matrix)
        lengths = np.linalg.norm(normals, axis=1, keepdims=True)
        good = np.isfinite(lengths) & (lengths > 0)
        normals = np.where(good, normals / np.where(good, lengths, 1.0), 0.0)
    material, uv, colours = _look(mesh.visual, count, path.parent, note)
    if linear and colours is not None:
        colours = colours.copy()
        colours[:, :3] = np.vectorize(to_srgb, otypes=[float])(colours[:, :3])
    if colours is None:
        colours = np.ones((count, 4))
    elif (colours[:, 3] < 1.0).any() and material.alpha_mode == OPAQUE and not linear:
        material = dataclasses.replace(material, alpha_mode=BLEND)
    return Part(
        vertices=np.where(np.isfinite(vertices), vertices, 0.0),
        faces=faces.astype(np.int32),
        normals=normals.astype(np.float32),
        uv=uv.astype(np.float32),
        colours=colours.astype(np.float32),
        material=material,
    )


def _look(
    visual: Any, count: int, folder: Path, note: Note
) -> tuple[Material, NDArray[np.float64], NDArray[np.float64] | None]:
    """Material, texture coordinates [N, 2] and vertex colours [N, 4] or None."""
    no_uv = np.zeros((count, 2))
    white = Material(rgba=(1.0, 1.0, 1.0, 1.0))
    if isinstance(visual, trimesh.visual.TextureVisuals):
        material = material_of(visual.material, folder, note)
        colours = visual.vertex_attributes.get("color") if visual.vertex_attributes else None
        uv = None if visual.uv is None else np.asarray(visual.uv, np.float64)
        if uv is None or uv.shape != (count, 2) or not np.isfinite(uv).all():
            if material.base_texture is not None:
                note("a texture has no usable coordinates")
            uv = no_uv
        return material, uv, None if colours is None else _rgba(colours)
    if visual.kind == "vertex":
        return white, no_uv, _rgba(visual.vertex_colors)
    return Material(), no_uv, None


def _rgba(colours: Any) -> NDArray[np.float64]:
    """RGB or RGBA, bytes, 16 bit or floats -> [N, 4] in [0, 1]."""
    values = np.asarray(colours)
    if values.dtype.kind in "ui":
        values = values / float(np.iinfo(values.dtype).max)
    values = np.asarray(values, np.float64).clip(0.0, 1.0)
    return values if values.shape[1] == 4 else np.column_stack([values[:, :3], np.ones(len(values))])


def _missing_files(path: Path) -> list[str]:
    """Material files and textures that an OBJ names and that are not there; trimesh passes over them in silence."""
    missing = []
    text = path.read_text(encoding="utf-8", errors="replace")
    for name in re.findall(r"^mtllib\s+(.+?)\s*$", text, re.MULTILINE):
        library = path.parent / name
        if not library.is_file():
            missing.append(name)
            continue
        lines = library.read_text(encoding="utf-8", errors="replace")
        textures = re.findall(r"^\s*map_Kd\s+(.+?)\s*$", lines, re.MULTILINE | re.IGNORECASE)
        missing += [texture for texture in textures if not (library.parent / texture.replace("\\", "/")).is_file()]
    return list(dict.fromkeys(missing))
