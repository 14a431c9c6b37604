"""ElevEst estimates the camera elevation of a photo: DINOv2 with registers and two small heads.

The heads read the class token and give scores of 25 bins of 2 degrees and an offset within the bin. Inside the network
elevation is negative above the horizon, as published; `ElevationEstimator`, the exported graph, gives the user's sign.
Axes: B images, L patches, D width, K bins.
State-dict names are those of the official checkpoint.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffsplat.images.dinov2 import DinoConfig, DinoV2


@dataclass(frozen=True)
class ElevEstConfig:
    """Architecture of one ElevEst; the defaults are the published one."""

    backbone: DinoConfig = field(default_factory=DinoConfig)
    input_size: int = 224
    num_bins: int = 25
    lowest_deg: float = -40.0  # of the network's sign: negative is above the horizon
    highest_deg: float = 10.0

    def __post_init__(self) -> None:
        """Check early what would otherwise fail at the first image."""
        for name, size in (("input_size", self.input_size), ("backbone.image_size", self.backbone.image_size)):
            if size % self.backbone.patch_size:
                raise ValueError(f"{name} = {size}: must be a multiple of the patch size {self.backbone.patch_size}")


class ElevationPrediction(NamedTuple):
    """Outputs of the heads, in degrees with the network's sign."""

    logits: Tensor  # [B, K] scores of the bins, lowest first
    offset_deg: Tensor  # [B] from the lower edge of the bin, not clamped


class ElevEst(nn.Module):
    """Backbone and heads.

    Args:
        backbone: gives `DinoTokens`.
        dim: width of its class token, and of the heads.
        num_bins: bins from `lowest_deg` to `highest_deg`.
        lowest_deg: lower edge of the first bin, of the network's sign.
        highest_deg: upper edge of the last bin.
    """

    lower_bounds: Tensor  # [K] degrees

    def __init__(self, backbone: nn.Module, dim: int, num_bins: int, lowest_deg: float, highest_deg: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.cls_head = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, num_bins))
        self.offset_head = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, 1))
        self.bin_width_deg = (highest_deg - lowest_deg) / num_bins
        self.register_buffer("lower_bounds", lowest_deg + self.bin_width_deg * torch.arange(num_bins))

    def forward(self, images: Tensor, positions: Tensor | None = None) -> ElevationPrediction:
        """Images as `images.elevation_input` makes them [B, 3, 224, 224] -> predictions; `positions` as in `DinoV2`."""
        return self.heads(self.backbone(images, positions).class_token)

    def heads(self, class_token: Tensor) -> ElevationPrediction:
        """Class token [B, D] -> predictions."""
        return ElevationPrediction(self.cls_head(class_token), self.offset_head(class_token)[:, 0])

    def internal_elevation_deg(self, prediction: ElevationPrediction) -> Tensor:
        """Lower edge of the best bin plus the offset clamped to the bin: [B] degrees, NEGATIVE above the horizon."""
        offset = prediction.offset_deg.clamp(0.0, self.bin_width_deg)
        return self.lower_bounds[prediction.logits.argmax(dim=-1)] + offset


class ElevationEstimator(nn.Module):
    """The exported graph: image -> elevation with the user's sign. Resizes the position table once, on construction."""

    positions: Tensor  # [1, 1 + L, D]

    def __init__(self, network: ElevEst, input_size: int = 224) -> None:
        super().__init__()
        self.network = network
        positions = network.backbone.position_table(input_size, input_size)  # type: ignore[operator]
        self.register_buffer("positions", positions.detach().clone(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images as `images.elevation_input` makes them [B, 3, 224, 224] -> [B] degrees, POSITIVE above the horizon."""
        return -self.network.internal_elevation_deg(self.network(images, self.positions))


class ElevationLosses(NamedTuple):
    """Training loss of ElevEst, means over the images."""

    total: Tensor  # [] to minimise: bins + offset_weight * offset
    bins: Tensor  # [] cross-entropy
    offset: Tensor  # [] squared degrees
    error_deg: Tensor  # [] |estimate - truth|, without gradient


def elevation_losses(
    network: ElevEst,
    prediction: ElevationPrediction,
    internal_elevation_deg: Tensor,
    clamp_offset: bool = True,
    offset_weight: float = 1.0,
) -> ElevationLosses:
    """Losses of predictions for images of known elevation.

    Args:
        network: the network that made the prediction, for its bins.
        prediction: its output for B images.
        internal_elevation_deg: [B] truth, NEGATIVE above the horizon.
        clamp_offset: use the offset clamped to its bin, as published, which has no gradient outside the bin.
        offset_weight: published as `elevest_reg_weight`.

    Raises:
        ValueError: an elevation outside the bins.
    """
    low = float(network.lower_bounds[0])
    high = float(network.lower_bounds[-1]) + network.bin_width_deg
    if not bool(((internal_elevation_deg >= low) & (internal_elevation_deg <= high)).all()):
        raise ValueError(
            f"internal_elevation_deg = {internal_elevation_deg.tolist()}: all must be in {low:g} .. {high:g}"
        )
    bins = (torch.bucketize(internal_elevation_deg, network.lower_bounds, right=True) - 1).clamp_min(0)  # [B]
    offset = prediction.offset_deg.clamp(0.0, network.bin_width_deg) if clamp_offset else prediction.offset_deg
    error = (network.internal_elevation_deg(prediction) - internal_elevation_deg).abs().mean().detach()
    bins_loss = F.cross_entropy(prediction.logits, bins)
    offset_loss = F.mse_loss(offset, internal_elevation_deg - network.lower_bounds[bins])
    return ElevationLosses(bins_loss + offset_weight * offset_loss, bins_loss, offset_loss, error)


def elevest_config(values: Mapping[str, Any]) -> ElevEstConfig:
    """Build from plain JSON types, `backbone` as a dict. ValueError names an unknown field."""
    try:
        backbone = DinoConfig(**values.get("backbone", {}))
        return ElevEstConfig(**{**values, "backbone": backbone})
    except TypeError as error:
        raise ValueError(f"spec.elevest: {error}") from None


def build_elevest(config: ElevEstConfig | None = None) -> ElevEst:
    """Build an ElevEst with random weights, by default of the published architecture."""
    config = config or ElevEstConfig()
    return ElevEst(DinoV2(config.backbone), config.backbone.dim, config.num_bins, config.lowest_deg, config.highest_deg)
