"""Training's own look at a denoiser is the loop that is served."""

import pytest
import torch
from diffsplat_client.request import GenerationRequest

from diffsplat.networks import bundle_network
from diffsplat.pipeline import Pipeline
from diffsplat.text.tokenizer import Tokenizer
from tests.families import CAPTIONS, write_family_bundle
from training.sampling import generate_latents

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=(pytest.mark.gpu, needs_cuda))]


@pytest.mark.parametrize("device", DEVICES)
def test_latents_are_those_of_requests(device, tmp_path):
    bundle = write_family_bundle(tmp_path / "bundle", "sd15")
    denoiser, encoder = (bundle_network(bundle, name).to(device) for name in ("denoiser", "text_encoder"))
    tokenizer = Tokenizer.for_encoder(bundle.tokenizer_paths[0], bundle.spec.text.encoders[0])
    generator = torch.Generator().manual_seed(5)
    latents = generate_latents(denoiser, encoder, tokenizer, bundle.spec, CAPTIONS, generator, steps=2)

    seeds = torch.randint(2**32, (len(CAPTIONS),), generator=torch.Generator().manual_seed(5)).tolist()
    pipeline = Pipeline.from_bundle(bundle)
    for prompt, seed, mine in zip(CAPTIONS, seeds, latents, strict=True):
        work = pipeline.encode.run(GenerationRequest(prompt, seed=seed, steps=2))
        job = pipeline.denoise.start(work)
        while job.step < job.steps:
            pipeline.denoise.step([job])
        torch.testing.assert_close(mine, job.latents, rtol=1e-3, atol=1e-3)
    assert next(denoiser.parameters()).device.type == device
