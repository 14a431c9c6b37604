"""Images, control maps, estimated elevation and Instant3D's start through the stages, on very small backbones."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from diffsplat_client.errors import InvalidRequestError
from diffsplat_client.request import GenerationRequest

from diffsplat.bundle import Bundle
from diffsplat.denoisers.control_inputs import add_residuals
from diffsplat.images import prepare
from diffsplat.images.decode_file import DecodedImage, read_image
from diffsplat.images.prepare import elevation_input, prepare_control_map, prepare_image
from diffsplat.pipeline import Pipeline
from diffsplat.stages import denoise_batch, images
from diffsplat.stages.denoise_job import DenoiseJob
from diffsplat.stages.work import DenoiseWork
from tests.families import GRID, LATENT, write_family_bundle
from tests.image_files import image

IMAGE_FAMILIES = ["sd15_image", "sdxl_image", "pixart_sigma_image", "sd3_image", "sd35_image"]
CONTROL_FAMILIES = ["sd15", "sdxl"]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Pipeline]:
    """Pipelines by family, each made once."""
    made: dict[tuple[object, ...], Pipeline] = {}

    def get(name: str, controls: tuple[str, ...] = (), images: bool = False) -> Pipeline:
        key = (name, controls, images)
        if key not in made:
            bundle: Bundle = write_family_bundle(tmp_path_factory.mktemp("conditions") / name, name, controls, images)
            made[key] = Pipeline.from_bundle(bundle)
        return made[key]

    return get


def start(pipeline: Pipeline, request: GenerationRequest) -> DenoiseJob:
    work = pipeline.encode.run(request)
    pipeline.denoise.check(work)
    return pipeline.denoise.start(work)


def finish(pipeline: Pipeline, *jobs: DenoiseJob) -> list[torch.Tensor]:
    while active := [job for job in jobs if job.step < job.steps]:
        pipeline.denoise.step(active)
    return [job.latents for job in jobs]


def assert_near(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("family", IMAGE_FAMILIES)
def test_an_image_steers_and_requests_stay_apart(make, family: str) -> None:
    pipeline = make(family)
    first = GenerationRequest("a red cube", image=image(1), elevation_deg=10.0, seed=1)
    other = GenerationRequest("", image=image(2), elevation_deg=30.0, seed=1, steps=4, guidance_scale=1.0)
    alone = [finish(pipeline, start(pipeline, request))[0] for request in (first, other)]
    together = finish(pipeline, *(start(pipeline, request) for request in (first, other)))
    for mine, expected in zip(together, alone, strict=True):
        assert_near(mine, expected)
    elsewhere = GenerationRequest("a red cube", image=image(3), elevation_deg=10.0, seed=1)
    assert not torch.allclose(finish(pipeline, start(pipeline, elsewhere))[0], alone[0])
    assert pipeline.generate(first).splats.shape == (4 * GRID * GRID, 14)


@pytest.mark.parametrize("family", CONTROL_FAMILIES)
@pytest.mark.parametrize("guess_mode", [False, True])
def test_a_control_map_steers_its_own_request_alone(make, family: str, guess_mode: bool) -> None:
    pipeline = make(family, ("depth", "canny"))
    plain = GenerationRequest("a red cube", seed=1)
    depth = GenerationRequest(
        "a red cube", seed=1, control_image=image(1), control_type="depth", guess_mode=guess_mode, elevation_deg=10.0
    )
    canny = GenerationRequest(
        "two blue spheres", seed=2, control_image=image(2), control_type="canny", extract_canny=True,
        control_scale=0.5, guidance_scale=1.0, elevation_deg=10.0,
    )  # fmt: skip
    requests = (plain, depth, canny)
    alone = [finish(pipeline, start(pipeline, request))[0] for request in requests]
    assert not torch.allclose(alone[0], alone[1])
    for mine, expected in zip(finish(pipeline, *(start(pipeline, r) for r in requests)), alone, strict=True):
        assert_near(mine, expected)
    uncontrolled = make(family)  # the same seed of weights: a ControlNet beside it changes nothing
    assert_near(alone[0], finish(uncontrolled, start(uncontrolled, plain))[0])


def test_the_elevation_is_estimated_from_the_image(make) -> None:
    pipeline = make("sd15_image", images=True)
    envelope = pipeline.encode.run(GenerationRequest("", image=image(1), estimate_elevation=True)).envelope
    assert envelope.request.elevation_deg is not None and -10.0 <= envelope.request.elevation_deg <= 40.0


@pytest.mark.parametrize("extract_canny", [False, True])
def test_a_control_image_whose_elevation_is_estimated_is_decoded_once(
    make, extract_canny: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = make("sd15", ("canny",), images=True)
    stage, data = pipeline.encode.images, image(1)
    size = stage.spec.image_size
    photo = prepare_image(data, size)
    expected = stage.graphs["elevest"](elevation_input(photo.rgb[None], stage._elevation_size))
    expected_hint = prepare_control_map(data, stage.spec.hint_size, extract_canny).hint
    decoded = []

    def count(data: bytes, field: str) -> DecodedImage:
        decoded.append(field)
        return read_image(data, field)

    for module in (images, prepare):
        monkeypatch.setattr(module, "read_image", count)
    request = GenerationRequest(
        "x", control_image=data, control_type="canny", extract_canny=extract_canny, estimate_elevation=True
    )
    result = stage.run(request)
    assert decoded == ["CONTROL_IMAGE"]
    assert result.request.elevation_deg == float(expected[0])
    assert result.features.hint is not None and torch.equal(result.features.hint, expected_hint)


def test_steps_without_a_control_map_share_the_zeros_that_they_add(make, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = make("sd15", ("depth",))
    added = []

    def keep(*arguments) -> torch.Tensor:
        added.append(add_residuals(*arguments))
        return added[-1]

    monkeypatch.setattr(denoise_batch, "add_residuals", keep)
    request = GenerationRequest("a red cube", seed=1, steps=3)
    finish(pipeline, start(pipeline, request))
    assert len(added) == 3 and all(residuals is added[0] for residuals in added)
    controlled = dataclasses.replace(request, control_image=image(1), control_type="depth", elevation_deg=10.0)
    finish(pipeline, start(pipeline, controlled))
    assert all(residuals.any() for residuals in added[3:])
    assert not added[0].any()  # neither the network nor a controlled request wrote into them


@pytest.mark.parametrize("family", ["sd15", "sd35"])
def test_instant3d_starts_late_from_a_blob(make, family: str) -> None:
    pipeline = make(family, images=True)
    request = GenerationRequest("a red cube", seed=1, steps=4, init_std=0.1, init_noise_strength=0.6)
    job = start(pipeline, request)
    assert job.steps == 2  # the last 60 % of 4, rounded down
    generator = torch.Generator().manual_seed(1)
    shape = job.latents.shape
    draws = [torch.randn(shape, generator=generator) for _ in range(3)]
    features = pipeline.encode.run(request).images
    assert features.start_moments is not None
    mean, std = features.start_moments
    late = pipeline.denoise._sampler(pipeline.encode.run(request).envelope.request)[1]
    assert late is not None
    assert torch.equal(job.latents, late.noised(mean + std * draws[1], draws[2]))  # the first draw is thrown away
    assert finish(pipeline, job)[0].isfinite().all()


def test_a_blob_under_all_noise_is_an_ordinary_start(make) -> None:
    pipeline = make("sd15", images=True)
    ordinary = GenerationRequest("a red cube", seed=1, steps=4)
    covered = dataclasses.replace(ordinary, init_std=0.1, init_noise_strength=1.0)
    job = start(pipeline, covered)
    assert job.steps == 4 and torch.equal(job.latents, start(pipeline, ordinary).latents)


@pytest.mark.parametrize(
    ("family", "options", "says"),
    [
        ("sd15_image", {}, "image is missing: the bundle 'tiny_sd15_image' is conditioned on an image"),
        ("sd15_image", {"image": image(1)}, "elevation_deg is open"),
        (
            "sd15_image",
            {"image": image(1), "estimate_elevation": True},
            "estimate_elevation = True: the bundle 'tiny_sd15_image' has no elevation estimator",
        ),
        ("sd15_image", {"image": b"not an image", "elevation_deg": 0.0}, "IMAGE"),
        ("sd15", {"image": image(1)}, "image is given: the bundle 'tiny_sd15' is conditioned on text alone"),
        (
            "sd15",
            {"control_image": image(1), "control_type": "normal"},
            "control_type = 'normal': the bundle 'tiny_sd15' has the ControlNets: none",
        ),
        ("sd15", {"init_std": 0.2}, "init_std = 0.2: must be 0, the bundle 'tiny_sd15' has no image encoder"),
    ],
)
def test_what_a_bundle_cannot_do_is_refused(make, family: str, options: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidRequestError, match=says):
        make(family).encode.run(GenerationRequest("a red cube", **options))


def test_a_control_that_is_not_loaded_is_refused(make) -> None:
    request = GenerationRequest("a red cube", control_image=image(1), control_type="normal")
    with pytest.raises(InvalidRequestError, match="the bundle 'tiny_sd15' has the ControlNets: depth, canny"):
        make("sd15", ("depth", "canny")).encode.run(request)


def test_denoise_refuses_images_that_do_not_belong(make) -> None:
    pipeline = make("sd15_image")
    encoded = pipeline.encode.run(GenerationRequest("x", image=image(1), elevation_deg=0.0))
    without = encoded.images._replace(condition_latents=None)
    with pytest.raises(InvalidRequestError, match="CONDITION_LATENTS is missing"):
        pipeline.denoise.check(DenoiseWork(encoded.envelope, encoded.text, without))
    wrong = encoded.images._replace(condition_latents=torch.zeros(4, LATENT, LATENT + 1))
    with pytest.raises(InvalidRequestError, match="CONDITION_LATENTS has shape"):
        pipeline.denoise.check(DenoiseWork(encoded.envelope, encoded.text, wrong))
    surplus = encoded.images._replace(hint=torch.zeros(3, 8 * LATENT, 8 * LATENT))
    with pytest.raises(InvalidRequestError, match="HINT is given, but nothing asks for it"):
        pipeline.denoise.check(DenoiseWork(encoded.envelope, encoded.text, surplus))
