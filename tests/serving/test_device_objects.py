"""decode and rasterize on a CUDA device that exists only as shapes: what they move and wait for, once per object."""

import dataclasses
import inspect
from typing import Any

import numpy as np
import pytest
import torch
from diffsplat_client.errors import InvalidRequestError
from diffsplat_client.request import GenerationRequest
from torch import Tensor

from diffsplat.backbones import BackboneSpec
from diffsplat.rasterize import cuda
from diffsplat.stages.checks import check_splats
from diffsplat.stages.decode import DecodeStage
from diffsplat.stages.envelope import Envelope
from diffsplat.stages.rasterize import RasterizeStage
from tests.fake_cuda import CUDA, FakeCuda
from tests.families import family_spec

FRAMES, SIZE = 5, 48
FREE_BYTES = 2 * 3 * (4 * 32 * 32 * 3 // 4 * cuda.BYTES_PER_SPLAT + SIZE * SIZE * cuda.BYTES_PER_PIXEL)  # 3 cameras


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shape of `viewmats` in each call of gsplat, whose place a function with its signature and rules takes."""
    import gsplat

    signature = inspect.signature(gsplat.rasterization)
    calls: list[tuple[int, ...]] = []

    def rasterization(*arguments: Any, **named: Any) -> tuple[Tensor, Tensor, dict[str, Any]]:
        given = signature.bind(*arguments, **named).arguments
        tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
        assert all(value.device == CUDA and value.dtype == torch.float32 for value in tensors.values())
        batch, (splats, _) = given["means"].shape[:-2], given["means"].shape[-2:]
        cameras = given["viewmats"].shape[-3]
        shapes = {
            "means": (splats, 3), "quats": (splats, 4), "scales": (splats, 3), "opacities": (splats,),
            "colors": (splats, 3), "viewmats": (cameras, 4, 4), "Ks": (cameras, 3, 3), "backgrounds": (cameras, 3),
        }  # fmt: skip
        assert {name: tuple(value.shape) for name, value in tensors.items()} == {
            name: (*batch, *shape) for name, shape in shapes.items()
        }
        calls.append(tuple(given["viewmats"].shape))
        image = given["means"].new_zeros(*batch, cameras, given["height"], given["width"], 3)
        return image, image[..., :1], {}

    monkeypatch.setattr(cuda, "_gsplat_rasterization", lambda: rasterization)
    monkeypatch.setattr(cuda, "_free_bytes", lambda device: FREE_BYTES)
    return calls


def envelope_of(spec: BackboneSpec, poses: np.ndarray | None = None) -> Envelope:
    request = GenerationRequest("a red cube", frame_poses=poses, frame_size=SIZE, formats=("ply_compat",))
    return Envelope(request.with_defaults(**{**spec.request_defaults, "elevation_deg": 10.0, "seed": 1}))


def test_decode_looks_at_its_latents_and_its_grid_once(fake: FakeCuda) -> None:
    spec = family_spec("sd15")
    stage = DecodeStage(spec, fake.graphs(spec, ["decoder"])["decoder"])
    shape = (spec.geometry.views, spec.latent_channels, spec.latent_size, spec.latent_size)
    latents = fake.tensor(torch.empty(shape))
    with fake.work():
        splats, raw = stage.run(latents, envelope_of(spec))
    assert raw is not None and splats.device == raw.device == CUDA and splats.dtype == torch.float32
    assert splats.shape == raw.shape == (4 * 32 * 32, 14)
    cameras = [("cuda", (4, 4, 4)), ("cuda", (4, 4))]
    assert fake.transfers == [("cpu", (2, *shape[1:])), ("cpu", ()), *cameras] and not fake.waits


@pytest.mark.parametrize("compensated", [True, False])
@pytest.mark.parametrize("scales", [(1.0,) * FRAMES, (0.5, 1.0, 1.0, 2.0, 1.0)], ids=["alike", "growing"])
def test_frames_are_made_on_the_device_in_chunks_that_fit(
    fake: FakeCuda, drawn: list[tuple[int, ...]], compensated: bool, scales: tuple[float, ...]
) -> None:
    spec = family_spec("sd15")
    geometry = dataclasses.replace(spec.geometry, opacity_compensation=compensated)
    stage = RasterizeStage(dataclasses.replace(spec, geometry=geometry), device=CUDA)
    poses = np.array([[10.0, 72.0 * k, 1.4, scale] for k, scale in enumerate(scales)], np.float32)
    with fake.work():
        frames = stage.run(fake.tensor(torch.empty(4 * 32 * 32, 14)), envelope_of(spec, poses)).frames
    assert frames is not None and frames.shape == (FRAMES, SIZE, SIZE, 3) and frames.dtype == torch.uint8
    shared = scales[0] == scales[1] and not compensated  # one object before several cameras, else one for each
    assert drawn == ([(3, 4, 4), (2, 4, 4)] if shared else [(3, 1, 4, 4), (2, 1, 4, 4)])
    to_host = [shape for where, shape in fake.transfers if where == "cpu"]
    assert to_host == [(2, 14), (3, SIZE, SIZE, 3), (2, SIZE, SIZE, 3)] and fake.waits == 1
    assert [shape for where, shape in fake.transfers if where == "cuda"] == [(FRAMES, 4, 4), (FRAMES, 3, 3)]


def test_no_poses_no_work(fake: FakeCuda, drawn: list[tuple[int, ...]]) -> None:
    spec = family_spec("sd15")
    with fake.work():
        assert RasterizeStage(spec, device=CUDA).run(fake.tensor(torch.empty(8, 14)), envelope_of(spec)).frames is None
    assert not drawn and not fake.waits


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -3e38])
def test_what_is_refused_of_a_device_is_what_is_refused_on_the_host(
    monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    """The extremes of the columns stand for all values; `meta` would have none, so a subclass says it is elsewhere."""
    splats = torch.full((5, 14), 0.5)
    splats[2, 12] = value
    with pytest.raises(InvalidRequestError) as on_host:
        check_splats(splats)
    elsewhere = splats.as_subclass(Elsewhere)
    with pytest.raises(InvalidRequestError) as on_device:
        check_splats(elsewhere)
    assert str(on_device.value) == str(on_host.value)
    check_splats(torch.full((5, 14), 0.5).as_subclass(Elsewhere))
    check_splats(torch.zeros(0, 14).as_subclass(Elsewhere))


class Elsewhere(Tensor):
    """Real numbers that do not lie on the host as far as the stages know."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("meta")

    def to(self, *arguments: Any, **named: Any) -> Tensor:
        return self.as_subclass(Tensor)
