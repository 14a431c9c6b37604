"""`package`: splats -> the raw tensor or a file, as the request says. Needs numpy only, so that it starts at once."""

import os
from typing import NamedTuple

import numpy as np
from diffsplat_client.cloud import SplatCloud
from diffsplat_client.errors import InvalidRequestError
from diffsplat_client.formats import file_format

from diffsplat.export_record import ExportRecord
from diffsplat.stages.checks import check_shape, check_splats
from diffsplat.stages.envelope import OutputEnvelope


class PackageResult(NamedTuple):
    """By the request's format the raw splats, a file, or both; only splats above the request's opacity threshold."""

    gaussians: np.ndarray | None  # [N, 14] float32; for raw and formats `as_decoded`
    asset: bytes | None  # for all but raw


class PackageStage:
    """Applies the asset's opacity threshold and writes the format."""

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "PackageStage":
        """From a version folder, which holds nothing but its record. BundleError names a file that is damaged."""
        ExportRecord.read(folder)
        return cls()

    def run(self, splats: np.ndarray, envelope: OutputEnvelope, raw_splats: np.ndarray | None = None) -> PackageResult:
        """Package [N, 14].

        Args:
            splats: canonical ones.
            envelope: holds the format and the thresholds.
            raw_splats: the same before canonicalisation; required by formats `as_decoded`.

        Raises:
            InvalidRequestError: what `check_splats` refuses, or raw splats that are missing or have another length.
        """
        check_splats(splats)
        request = envelope.request
        threshold = request.opacity_threshold_asset
        format = file_format(request.format)
        if format is None:
            return PackageResult(_above(splats, threshold), None)
        if not format.as_decoded:
            return PackageResult(None, format.write(SplatCloud.from_array(_above(splats, threshold)), request.frame))
        if raw_splats is None:
            raise InvalidRequestError(f"RAW_SPLATS is missing: format = {request.format!r} needs it")
        check_splats(raw_splats, "RAW_SPLATS")
        check_shape("RAW_SPLATS", raw_splats, splats.shape)
        # the published script writes what its renderer has kept, so that both thresholds hold for its files
        threshold = max(threshold, request.opacity_threshold_render)
        file = format.write(SplatCloud.from_array(_above(raw_splats, threshold)), request.frame)
        # that file shows another object wherever quaternions are normalised: the splats themselves come with it
        return PackageResult(_above(splats, threshold), file)


def _above(splats: np.ndarray, threshold: float) -> np.ndarray:
    keep = SplatCloud.from_array(splats).opacity > threshold
    return splats if keep.all() else splats[keep]
