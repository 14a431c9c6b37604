"""`package`: splats -> the raw tensor and files, as the request says. Needs numpy only, so that it starts at once."""

import os
from typing import NamedTuple

import numpy as np
from diffsplat_client.cloud import SplatCloud
from diffsplat_client.errors import InvalidRequestError
from diffsplat_client.formats import RAW
from diffsplat_client.output_options import OutputOptions

from diffsplat.export_record import ExportRecord
from diffsplat.stages.checks import check_shape, check_splats
from diffsplat.stages.envelope import OutputEnvelope


class PackageResult(NamedTuple):
    """What the request's formats ask for; only splats that the request keeps."""

    gaussians: np.ndarray | None  # [N, 14] float32; for raw and formats with `splats_too`
    assets: dict[str, bytes]  # format -> file


class PackageStage:
    """Keeps the splats that the request asks for, and writes the formats."""

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "PackageStage":
        """From a version folder, which holds nothing but its record. BundleError names a file that is damaged."""
        ExportRecord.read(folder)
        return cls()

    def run(self, splats: np.ndarray, envelope: OutputEnvelope, raw_splats: np.ndarray | None = None) -> PackageResult:
        """Package [N, 14].

        Args:
            splats: canonical ones.
            envelope: holds the formats, the thresholds and the budget.
            raw_splats: the same before canonicalisation; required by formats `as_decoded`.

        Raises:
            InvalidRequestError: what `check_splats` refuses, or raw splats that are missing or have another length.
        """
        check_splats(splats)
        request = envelope.request
        as_decoded = [format for format in request.file_formats if format.as_decoded]
        threshold = request.opacity_threshold_asset
        if as_decoded:
            # the published script writes what its renderer has kept, so that both thresholds hold for its files
            threshold = max(threshold, request.opacity_threshold_render)
        keep = kept_rows(splats, threshold, request.num_gaussians)
        kept = _rows(splats, keep)
        clouds = {False: SplatCloud.from_array(kept)}
        if as_decoded:
            if raw_splats is None:
                raise InvalidRequestError(f"RAW_SPLATS is missing: format {as_decoded[0].name!r} needs it")
            check_splats(raw_splats, "RAW_SPLATS")
            check_shape("RAW_SPLATS", raw_splats, splats.shape)
            clouds[True] = SplatCloud.from_array(_rows(raw_splats, keep))
        files = {format.name: format.write(clouds[format.as_decoded], request.frame) for format in request.file_formats}
        splats_too = RAW in request.formats or any(format.splats_too for format in request.file_formats)
        return PackageResult(kept if splats_too else None, files)


def kept_rows(splats: np.ndarray, threshold: float, budget: int | None) -> np.ndarray:
    """Which canonical splats [N, 14] a result keeps, as a mask [N].

    Those more opaque than `threshold`, and of these the `budget` most visible ones: with the largest product of opacity
    and radius, the geometric mean of the two longest axes, as seen broadside. Of equal ones those with the lower index.
    Opacity x area would keep large faint splats, by which frames from new views lose up to 3 dB more.
    """
    cloud = SplatCloud.from_array(splats)
    keep: np.ndarray = cloud.opacity > threshold
    if budget is None or np.count_nonzero(keep) <= budget:
        return keep
    axes = np.sort(cloud.scales, axis=1)
    visibility = np.where(keep, cloud.opacity * np.sqrt(axes[:, 1] * axes[:, 2]), -1.0)
    least = np.partition(visibility, -budget)[-budget]
    keep = visibility > least
    keep[np.flatnonzero(visibility == least)[: budget - np.count_nonzero(keep)]] = True
    return keep


def kept_splats(splats: np.ndarray, request: OutputOptions) -> np.ndarray:
    """The canonical splats [N, 14] that a result keeps, without regard to its files."""
    return _rows(splats, kept_rows(splats, request.opacity_threshold_asset, request.num_gaussians))


def _rows(splats: np.ndarray, keep: np.ndarray) -> np.ndarray:
    return splats if keep.all() else splats[keep]
