"""Training's own look at a denoiser is the loop that is served."""

import pytest
import torch
from diffsplat_client.request import GenerationRequest

from diffsplat.networks import bundle_network
from diffsplat.stages.denoise import DenoiseStage
from diffsplat.stages.encode import EncodeStage
from diffsplat.stages.envelope import Envelope
from diffsplat.stages.image_features import ImageFeatures
from diffsplat.stages.work import DenoiseWork
from tests.families import CAPTIONS, write_family_bundle
from training.sampling import Asked, generate_latents

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=(pytest.mark.gpu, needs_cuda))]
ELEVATION = 25.0  # of image models, which have no default


@pytest.mark.parametrize("name", ["sd15", "sdxl", "pixart_sigma", "sd35_image"])
@pytest.mark.parametrize("device", DEVICES)
def test_latents_are_those_of_requests(device, name, tmp_path):
    bundle = write_family_bundle(tmp_path / "bundle", name)
    spec = bundle.spec
    is_image = spec.is_image_conditioned
    denoiser = bundle_network(bundle, "denoiser").to(device)
    encode = EncodeStage.from_bundle(bundle)
    texts = [encode.prompts.encode([prompt, None]).features for prompt in CAPTIONS]
    images = torch.randn(len(CAPTIONS), spec.latent_channels, spec.latent_size, spec.latent_size)
    asked = [
        Asked(prompt, text, ELEVATION if is_image else None, image if is_image else None)
        for prompt, text, image in zip(CAPTIONS, texts, images, strict=True)
    ]
    latents = generate_latents(denoiser, spec, asked, torch.Generator().manual_seed(5), steps=2, guidance_scale=3.0)

    seeds = torch.randint(2**32, (len(CAPTIONS),), generator=torch.Generator().manual_seed(5)).tolist()
    stage = DenoiseStage.from_bundle(bundle)
    for entry, seed, mine in zip(asked, seeds, latents, strict=True):
        request = GenerationRequest(
            entry.prompt, seed=seed, steps=2, guidance_scale=3.0, elevation_deg=entry.elevation_deg
        ).with_defaults(**spec.request_defaults)
        job = stage.start(DenoiseWork(Envelope(request), entry.text, ImageFeatures(entry.condition_latents)))
        while job.step < job.steps:
            stage.step([job])
        torch.testing.assert_close(mine, job.latents, rtol=1e-3, atol=1e-3)
    assert next(denoiser.parameters()).device.type == device
