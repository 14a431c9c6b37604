"""The scene of a glTF file: which primitives it shows, and where its nodes place them."""

from collections.abc import Iterator

import numpy as np

from diffsplat_client.formats.gltf import Document, Json


def splat_primitives(document: Document, extension: str) -> Iterator[tuple[Json, np.ndarray]]:
    """Primitives with this extension, and the matrix [4, 4] from each to the world.

    Those of the default scene, else of the first one; without scenes every mesh once, where it lies.
    """
    for mesh, matrix in _meshes(document):
        for number, values in enumerate(mesh.items("primitives")):
            primitive = Json(values, f"{mesh.path}.primitives[{number}]")
            if primitive.child("extensions", optional=True).has(extension):
                yield primitive, matrix


def _meshes(document: Document) -> Iterator[tuple[Json, np.ndarray]]:
    if not document.items("scenes"):
        for number in range(len(document.items("meshes"))):
            yield document.item("meshes", number), np.eye(4)
        return
    scene = document.item("scenes", document.whole("scene", 0))
    waiting = [(number, np.eye(4)) for number in _numbers(scene, "nodes")]
    seen: set[int] = set()
    while waiting:
        number, parent = waiting.pop()
        if number in seen:
            raise ValueError(f"glb: nodes[{number}] has two parents: nodes must be trees")
        seen.add(number)
        node = document.item("nodes", number)
        matrix = parent @ _matrix(node)
        if node.has("mesh"):
            yield document.item("meshes", node.whole("mesh")), matrix
        waiting += [(child, matrix) for child in _numbers(node, "children")]


def _numbers(parent: Json, name: str) -> list[int]:
    """Numbers of nodes."""
    numbers = parent.items(name)
    if any(isinstance(number, bool) or not isinstance(number, int) or number < 0 for number in numbers):
        raise ValueError(f"glb: {parent.path}.{name} holds something else than numbers of nodes")
    return numbers


def _matrix(node: Json) -> np.ndarray:
    """From a node to its parent, [4, 4]."""
    if (columns := node.numbers("matrix", 16)) is not None:
        return columns.reshape(4, 4).T
    matrix = np.eye(4)
    if (xyzw := node.numbers("rotation", 4)) is not None:
        matrix[:3, :3] = _rotation(xyzw[[3, 0, 1, 2]] / max(np.linalg.norm(xyzw), 1e-30))
    if (scale := node.numbers("scale", 3)) is not None:
        matrix[:3, :3] *= scale
    if (translation := node.numbers("translation", 3)) is not None:
        matrix[:3, 3] = translation
    return matrix


def _rotation(quat_wxyz: np.ndarray) -> np.ndarray:
    """A unit quaternion as a matrix [3, 3]: v -> v + 2 w (u x v) + 2 u x (u x v)."""
    w, (x, y, z) = quat_wxyz[0], quat_wxyz[1:]
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + 2 * w * cross + 2 * cross @ cross
