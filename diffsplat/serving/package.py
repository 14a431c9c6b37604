"""`package`: splats -> what the client asked for, the raw tensor or a file. numpy alone, so that it starts at once."""

import os
from typing import NamedTuple

import numpy as np
from diffsplat_client.cloud import SplatCloud
from diffsplat_client.formats.ply import encode_ply

from diffsplat.serving.checks import check_splats
from diffsplat.serving.envelope import Envelope


class PackageResult(NamedTuple):
    """One of the two, by the request's format; only splats strictly more opaque than the request's threshold."""

    gaussians: np.ndarray | None  # [N, 14] float32
    asset: bytes | None


class PackageStage:
    """Applies the asset's opacity threshold and writes the format."""

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "PackageStage":
        """Needs nothing of the version folder."""
        return cls()

    def run(self, splats: np.ndarray, envelope: Envelope) -> PackageResult:
        """Package [N, 14]. InvalidRequestError for what `check_splats` refuses."""
        check_splats(splats)
        request = envelope.request
        cloud = SplatCloud.from_array(splats)
        if request.format == "raw":
            threshold = request.opacity_threshold_asset
            keep = cloud.opacity > threshold
            return PackageResult(splats if keep.all() else splats[keep], None)
        assert request.format == "ply", request.format  # validated with the request
        return PackageResult(None, bytes(encode_ply(cloud, request.opacity_threshold_asset)))
