"""One object, however it is shown: the frames, the raw splats and every file, for the geometry of published weights."""

import dataclasses

import numpy as np
import pytest
import torch
from diffsplat_client.errors import InvalidRequestError
from diffsplat_client.formats import FORMAT_CHOICES, FORMATS
from diffsplat_client.request import GenerationRequest
from torch import Tensor, nn

from diffsplat.backbones import BackboneSpec
from diffsplat.backends.eager import TorchGraph
from diffsplat.geometry.gaussians import Gaussians, from_array
from diffsplat.stages.decode import DecodeResult, DecodeStage
from diffsplat.stages.envelope import Envelope
from diffsplat.stages.package import PackageResult, PackageStage
from diffsplat.stages.rasterize import RasterizeStage
from tests.drawing import BOUNDS, FRAME, POSES, difference, draw
from tests.families import family_spec

GRID = 48


@pytest.fixture(scope="module")
def spec() -> BackboneSpec:
    """SD1.5's geometry on a smaller grid, with splats from below a pixel to a tenth of the object."""
    spec = family_spec("sd15")
    geometry = dataclasses.replace(spec.geometry, grid_size=GRID, scale_min=0.0005, scale_max=0.05)
    assert not geometry.unit_quats and geometry.opacity_compensation and geometry.eps2d == 0
    return dataclasses.replace(spec, geometry=geometry)


@pytest.fixture(scope="module")
def envelope(spec: BackboneSpec) -> Envelope:
    request = GenerationRequest("x", seed=0, frame_poses=POSES, frame_size=FRAME)
    return Envelope(request.with_defaults(**spec.request_defaults))


@pytest.fixture(scope="module")
def decoded(spec: BackboneSpec, envelope: Envelope) -> DecodeResult:
    """What `decode` makes of a grid with quaternions of every length, and with opacities of 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    grid = 2 * torch.rand(1, 4, 12, GRID, GRID, generator=generator) - 1
    grid[:, :, 10] = (1.5 * grid[:, :, 10]).clamp(-1, 1)
    grid[:, :, 11] *= 0.4
    latents = torch.zeros(4, spec.latent_channels, spec.latent_size, spec.latent_size)
    stage = DecodeStage(spec, TorchGraph("decoder", Constant(grid)))
    assert stage.run(latents, envelope).raw_splats is None
    return stage.run(latents, asking(envelope, formats=("ply_compat",)))


class Constant(nn.Module):
    """A decoder that makes the same of all latents."""

    def __init__(self, grid: Tensor) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, latents: Tensor) -> Tensor:
        return self.grid


def asking(envelope: Envelope, **options: object) -> Envelope:
    return dataclasses.replace(envelope, request=dataclasses.replace(envelope.request, **options))


def packaged(decoded: DecodeResult, envelope: Envelope) -> PackageResult:
    return PackageStage().run(decoded.splats.numpy(), envelope, raw_array(decoded))


def splats_in(result: PackageResult, format: str) -> Gaussians:
    """What the format asked for holds, read back."""
    if format == "raw":
        assert result.gaussians is not None and not result.assets
        return from_array(torch.from_numpy(result.gaussians))
    return from_array(torch.from_numpy(FORMATS[format].read(result.assets[format]).to_array()))


def raw_array(decoded: DecodeResult) -> np.ndarray:
    assert decoded.raw_splats is not None
    return decoded.raw_splats.numpy()


@pytest.fixture(scope="module")
def frames(spec: BackboneSpec, envelope: Envelope, decoded: DecodeResult) -> np.ndarray:
    drawn = RasterizeStage(spec, threads=1).run(decoded.splats, envelope).frames
    assert drawn is not None and drawn.float().std() > 20, "there is something to see"
    return drawn.numpy()


def test_the_frames_show_what_the_published_renderer_is_given(
    spec: BackboneSpec, decoded: DecodeResult, frames: np.ndarray
) -> None:
    """The stages draw canonical splats; the renderer of training takes quaternions of any length."""
    assert difference(draw(from_array(torch.from_numpy(raw_array(decoded))), spec.geometry), frames).max() <= 1


@pytest.mark.parametrize("format", FORMAT_CHOICES)
def test_the_written_asset_is_the_object_of_the_frames(
    spec: BackboneSpec, envelope: Envelope, decoded: DecodeResult, frames: np.ndarray, format: str
) -> None:
    """Drawn from the same cameras by the rules of the bundle; a new format states its bounds above."""
    splats = splats_in(packaged(decoded, asking(envelope, formats=(format,))), format)
    error = difference(draw(splats, spec.geometry), frames)
    largest, mean = BOUNDS[format]
    assert error.max() <= largest and error.mean() <= mean


def test_what_viewers_do_otherwise(
    spec: BackboneSpec, envelope: Envelope, decoded: DecodeResult, frames: np.ndarray
) -> None:
    """What the docs say about viewers: 0.3 px more blur shows, the opacity factor does not."""
    splats = splats_in(packaged(decoded, asking(envelope, formats=("ply",))), "ply")
    blurred = draw(splats, dataclasses.replace(spec.geometry, eps2d=0.3))
    assert difference(blurred, frames).max() > 50
    without_factor = draw(splats, dataclasses.replace(spec.geometry, opacity_compensation=False))
    assert difference(without_factor, frames).max() <= 1


def test_ply_compat_is_another_object_where_quaternions_are_normalised(
    spec: BackboneSpec, envelope: Envelope, decoded: DecodeResult, frames: np.ndarray
) -> None:
    """As every viewer does: so the canonical splats come with that file."""
    result = packaged(decoded, asking(envelope, formats=("ply_compat",)))
    in_file = splats_in(result, "ply_compat")
    assert (in_file.quats_wxyz.norm(dim=-1) - 1).abs().max() > 0.5
    seen = in_file._replace(quats_wxyz=torch.nn.functional.normalize(in_file.quats_wxyz, dim=-1))
    assert difference(draw(seen, spec.geometry), frames).mean() > 10
    assert result.gaussians is not None and len(result.gaussians) == in_file.means.shape[1]
    beside = draw(from_array(torch.from_numpy(result.gaussians)), spec.geometry)
    assert difference(beside, frames).max() <= 1


class TestThresholds:
    """Strict ones. Frames and assets have their own; the published script writes what its renderer has kept."""

    @pytest.mark.parametrize("format", ["raw", "ply"])
    def test_an_asset_follows_its_own(self, envelope: Envelope, decoded: DecodeResult, format: str) -> None:
        opacity = decoded.splats[:, 6]
        limit = float(opacity[(opacity > 0.4) & (opacity < 0.6)][0])  # that splat is not above it
        asked = asking(envelope, formats=(format,), opacity_threshold_asset=limit, opacity_threshold_render=0.9)
        kept = splats_in(packaged(decoded, asked), format)
        assert 0 < kept.means.shape[1] < len(opacity)
        assert torch.equal(kept.means[0], decoded.splats[opacity > limit, :3])

    @pytest.mark.parametrize(("render", "asset"), [(0.3, 0.0), (0.3, 0.6), (0.6, 0.3), (0.0, 0.0)])
    def test_ply_compat_follows_both(
        self, envelope: Envelope, decoded: DecodeResult, render: float, asset: float
    ) -> None:
        asked = asking(
            envelope, formats=("ply_compat",), opacity_threshold_render=render, opacity_threshold_asset=asset
        )
        result = packaged(decoded, asked)
        keep = decoded.splats[:, 6] > max(render, asset)
        assert torch.equal(splats_in(result, "ply_compat").means[0], decoded.splats[keep, :3])
        assert result.gaussians is not None and np.array_equal(result.gaussians, decoded.splats[keep].numpy())

    def test_frames_of_a_threshold_show_the_asset_of_the_same(
        self, spec: BackboneSpec, envelope: Envelope, decoded: DecodeResult
    ) -> None:
        asked = asking(envelope, formats=("ply",), opacity_threshold_render=0.5, opacity_threshold_asset=0.5)
        drawn = RasterizeStage(spec, threads=1).run(decoded.splats, asked).frames
        assert drawn is not None
        assert difference(draw(splats_in(packaged(decoded, asked), "ply"), spec.geometry), drawn.numpy()).max() <= 1


@pytest.mark.parametrize("raw", [None, np.zeros((3, 14), np.float32), np.full((9216, 14), np.nan, np.float32)])
def test_raw_splats_that_are_none(envelope: Envelope, decoded: DecodeResult, raw: np.ndarray | None) -> None:
    with pytest.raises(InvalidRequestError, match="RAW_SPLATS"):
        PackageStage().run(decoded.splats.numpy(), asking(envelope, formats=("ply_compat",)), raw)
