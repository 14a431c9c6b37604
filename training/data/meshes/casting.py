"""Rays against a surface, by Embree, layer by layer behind what is transparent."""

from typing import NamedTuple

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from numpy.typing import NDArray

from diffsplat.geometry.cameras import DIFFSPLAT_FOCAL
from training.data.meshes.shading import resolve, shade_layer
from training.data.meshes.surface import Surface, extents
from training.data.procedural.render import LIGHT_YUP

MAX_LAYERS = 16  # surfaces behind one another
MIN_LEFT = 1.0 / 256.0  # share of the light below which what lies behind cannot be seen
_STEP = 1e-4  # how far behind a surface the next ray starts: coplanar surfaces count once
_CHANNELS = 13


class Cast(NamedTuple):
    """One view of a surface."""

    maps: NDArray[np.float32]  # [H, W, 13] colour 3, alpha, albedo 3, metallic, roughness, normal 3, depth
    cut_rays: int  # rays that were still not opaque after `MAX_LAYERS` surfaces


class Caster:
    """Casts views of one surface, which should lie in about [-0.5, 0.5]^3 (rays are float32).

    Args:
        surface: In the y-up world.
        resolution: Image side in pixels.
        samples: Rays per pixel along a side.
        centre_only: Whether normal and depth are those of the central ray where it hits, and not means.
    """

    def __init__(self, surface: Surface, resolution: int, samples: int, centre_only: bool) -> None:
        self.surface = surface
        self.resolution = resolution
        self.samples = samples
        self.centre_only = centre_only
        self._light = LIGHT_YUP / np.linalg.norm(LIGHT_YUP)
        self._scene = EmbreeScene()
        # The mesh belongs to the scene, which keeps no reference to it.
        self._mesh = TriangleMesh(self._scene, surface.vertices.astype(np.float32), surface.faces)
        box = np.stack(extents(surface))
        self._corners = np.array([[box[i, 0], box[j, 1], box[k, 2]] for i, j, k in np.ndindex(2, 2, 2)])

    def cast(self, camera_to_world: NDArray[np.float64]) -> Cast:
        """The view of a camera, [4, 4], OpenCV axes, y-up world; the object must lie before it."""
        maps = np.zeros((self.resolution, self.resolution, _CHANNELS), np.float32)
        rows, columns = self._rectangle(camera_to_world)
        if not (len(rows) and len(columns)):
            return Cast(maps, 0)
        spacing = 1.0 / (self.resolution * self.samples * DIFFSPLAT_FOCAL)
        directions = self._directions(camera_to_world, rows, columns)
        samples = np.zeros((len(directions), _CHANNELS))
        samples[:, 8] = 1.0  # nothing in the way yet
        surface = self.surface
        rays = np.arange(len(directions))
        reached = np.zeros(len(directions))  # planar depth up to which a ray has been followed
        for _ in range(MAX_LAYERS):
            starts = camera_to_world[:3, 3] + directions[rays] * reached[rays, None]
            hits = self._scene.run(starts.astype(np.float32), directions[rays], query="INTERSECT", output=1)
            hit = np.flatnonzero(hits["primID"] >= 0)
            rays = rays[hit]
            depth = reached[rays] + hits["tfar"][hit]
            shade_layer(
                rays, hits["primID"][hit], hits["u"][hit], hits["v"][hit], depth, directions, *surface, self._light,
                spacing, samples,
            )  # fmt: skip
            reached[rays] = depth + _STEP
            rays = rays[samples[rays, 8] > MIN_LEFT]
            if not len(rays):
                break
        shape = (len(rows), self.samples, len(columns), self.samples, _CHANNELS)
        resolve(samples.reshape(shape), rows[0], columns[0], self.centre_only, maps)
        return Cast(maps, len(rays))

    def _rectangle(self, camera_to_world: NDArray[np.float64]) -> tuple[range, range]:
        """Rows and columns of pixels that may see the object's box."""
        seen = (self._corners - camera_to_world[:3, 3]) @ camera_to_world[:3, :3]  # [8, 3]
        assert seen[:, 2].min() > 0.0, "the object must lie before the camera"
        pixels = (seen[:, :2] / seen[:, 2:] * DIFFSPLAT_FOCAL + 0.5) * self.resolution
        first, last = np.floor(pixels.min(axis=0)), np.ceil(pixels.max(axis=0))
        columns, rows = (range(max(0, int(first[axis])), min(self.resolution, int(last[axis]))) for axis in (0, 1))
        return rows, columns

    def _directions(self, camera_to_world: NDArray[np.float64], rows: range, columns: range) -> NDArray[np.float32]:
        """Directions with camera z = 1, in the order row, sample row, column, sample column. [S, 3]."""
        offsets = (np.arange(self.samples) + 0.5) / self.samples
        u = (np.add.outer(np.arange(columns.start, columns.stop), offsets) / self.resolution - 0.5) / DIFFSPLAT_FOCAL
        v = (np.add.outer(np.arange(rows.start, rows.stop), offsets) / self.resolution - 0.5) / DIFFSPLAT_FOCAL
        grid_v, grid_u = np.meshgrid(v.ravel(), u.ravel(), indexing="ij")
        in_camera = np.stack([grid_u.ravel(), grid_v.ravel(), np.ones(grid_u.size)], axis=-1)
        return np.ascontiguousarray((in_camera @ camera_to_world[:3, :3].T).astype(np.float32))
