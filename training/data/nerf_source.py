"""Folders with a ``transforms.json`` as a source: own renders, as NeRF tools write them.

The views of an object are numbered along the rings that its cameras form, then the others, so that the numbers do not
depend on the order of the file. All objects must have cameras on the same rings.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from training.data.nerf_frames import NAMES, Frames, read_frames, read_image, read_maps, to_standard_view
from training.data.record import DEPTH_RANGE, BrokenRecord, PackedViews, RawViews, pack_views
from training.data.record_source import CAPTION_PARTS, RecordSource
from training.data.rigs import find_rig

_DEEPEST = 3  # folders between root and object
_INPUT_VIEWS = 4


class NerfStore:
    """All folders with frames below a folder, sorted by id. A record's parts are its captions."""

    def __init__(self, root: Path) -> None:
        self.kind = "transforms"
        self.path = root
        self._files = sorted(_transform_files(root, 0), key=lambda file: file.as_posix())
        self.frames = functools.lru_cache(maxsize=4096)(lambda index: read_frames(self._files[index]))

    def __len__(self) -> int:
        return len(self._files)

    def uid(self, index: int) -> str:
        """Path of the object's folder below the root."""
        folder = self._files[index].parent
        return folder.name if folder == self.path else folder.relative_to(self.path).as_posix()

    def parts(self, index: int) -> Mapping[str, Path]:
        """Files of captions."""
        folder = self._files[index].parent
        beside = {"txt": folder.with_name(folder.name + ".txt")}
        paths = {**beside, **{name: folder / name for name in CAPTION_PARTS[1:]}}
        return {name: path for name, path in paths.items() if path.is_file()}

    def read(self, index: int, names: Sequence[str]) -> dict[str, bytes]:
        """Those of the named parts that the object has."""
        parts = self.parts(index)
        return {name: parts[name].read_bytes() for name in names if name in parts}

    def blocks(self) -> None:
        """Every object is as cheap alone."""


class NerfSource(RecordSource):
    """Some objects of a `NerfStore`."""

    store: NerfStore

    def __init__(
        self,
        store: NerfStore,
        rows: Sequence[int],
        resolution: int | None = None,
        captions: Mapping[str, str] | None = None,
        uid_map: Mapping[str, str] | None = None,
    ) -> None:
        first = find_rig(store.frames(rows[0]).camera_to_world_zup, _INPUT_VIEWS)
        super().__init__(store, rows, resolution, captions, uid_map, layout=first.layout)
        if not first.layout.rings:
            raise ValueError(
                f"{store.path}: the {len(first.order)} cameras of {store.uid(rows[0])} form no ring of {_INPUT_VIEWS} "
                "or more views at one elevation and equal azimuth steps, from which GSRecon's input views are taken"
            )
        self._orders = functools.lru_cache(maxsize=4096)(self._find_order)

    def usable_views(self, index: int) -> tuple[int, ...]:
        """Views whose image is there."""
        frames = self._frames(index).frames
        order = self._orders(index)
        return tuple(view for view, number in enumerate(order) if frames[number].image.is_file())

    def _provided_by(self, index: int) -> frozenset[str]:
        frames = self._frames(index).frames
        whole = all(frame.depth is not None and frame.normal is not None for frame in frames)
        maps = frozenset({"rgb", "normal", "depth"} if whole else {"rgb"})
        return maps | {"caption"} if self.captions(index) else maps

    def _decode(self, index: int, view_ids: Sequence[int]) -> PackedViews:
        frames = self._frames(index)
        order = self._orders(index)
        numbers = [order[view] for view in view_ids]
        with_maps = not {"normal", "depth"}.isdisjoint(self.maps & self.provides())
        rgba, normals, depths = [], [], []
        for number in numbers:
            frame = frames.frames[number]
            image = read_image(frame)
            side = min(image.shape[:2])
            values = image.astype(np.float32) / 255.0
            alpha = values[..., 3:]
            seen = to_standard_view(np.concatenate([values[..., :3] * alpha, alpha], axis=-1), frame, side)
            rgba.append(np.concatenate([_divided(seen[..., :3], seen[..., 3:]), seen[..., 3:]], axis=-1))
            if with_maps:
                normal, depth = read_maps(frame, frames.scale)
                if normal.shape[:2] != image.shape[:2] or depth.shape != image.shape[:2]:
                    raise BrokenRecord(f"{frame.image}: its depths or normals have another size")
                covered = ((alpha[..., 0] > 0) & (depth > 0)).astype(np.float32)[..., None]
                maps = np.concatenate([normal * covered, depth[..., None] * covered, covered], axis=-1)
                seen = to_standard_view(maps, frame, side)
                normal = seen[..., :3]
                normals.append(normal / np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-6))
                depths.append(np.minimum(_divided(seen[..., 3:4], seen[..., 4:])[..., 0], DEPTH_RANGE))
        if len({values.shape for values in rgba}) > 1:
            raise BrokenRecord("its images differ in size")
        colours = np.stack(rgba)
        shape = colours.shape[:3]
        packed = pack_views(
            RawViews(
                colours,
                np.stack(normals) if with_maps else np.zeros((*shape, 3), np.float32),
                np.stack(depths) if with_maps else np.zeros(shape, np.float32),
                frames.camera_to_world_zup[numbers],
            )
        )
        return packed if with_maps else packed._replace(normal_depth=packed.normal_depth[..., :0])

    def _frames(self, index: int) -> Frames:
        return self.store.frames(self.rows[index])

    def _find_order(self, index: int) -> tuple[int, ...]:
        rig = find_rig(self._frames(index).camera_to_world_zup, _INPUT_VIEWS)
        rings = [(ring.first, ring.count) for ring in rig.layout.rings]
        expected = [(ring.first, ring.count) for ring in self.layout.rings]
        if rings != expected:
            raise BrokenRecord(
                f"{self.uid(index)}: its cameras form rings of {[count for _, count in rings]} views; those of the "
                f"first object are of {[count for _, count in expected]}"
            )
        return rig.order[: self.layout.count]


def _divided(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.divide(values, weights, out=np.zeros_like(values), where=weights > 1e-6)


def _transform_files(folder: Path, depth: int) -> Iterator[Path]:
    for name in NAMES:
        if (folder / name).is_file():
            yield folder / name
            return
    if depth < _DEEPEST:
        for inner in sorted(folder.iterdir()):
            if inner.is_dir() and not inner.name.startswith("."):
                yield from _transform_files(inner, depth + 1)


def has_transforms(root: Path) -> bool:
    """Whether a folder, or one directly below it, has a ``transforms.json``."""
    return any((root / name).is_file() or any(root.glob(f"*/{name}")) for name in NAMES)
