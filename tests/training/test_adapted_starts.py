"""A stage goes on from another family's weights: other latents, other words, its own reconstruction."""

import dataclasses
from pathlib import Path

import pytest
import torch

from diffsplat.backbones import BACKBONES, PICO, BackboneSpec
from diffsplat.backbones.text import TEXT_ENCODER
from diffsplat.denoisers.interface import build_denoiser
from diffsplat.splats.gsvae import build_gsvae
from diffsplat.text.encoders import build_encoder
from diffsplat.text.tokenizer import Tokenizer
from tests.training.finished import Parents, write_parents
from training.config.common import Data, RunOptions
from training.config.diffusion import DiffusionConfig
from training.config.vae import VaeConfig
from training.latents import LatentCache
from training.parents import open_parent
from training.stages.diffusion import DiffusionStage
from training.stages.diffusion_start import adapted, may_start, start_denoiser
from training.stages.vae import VaeStage
from training.stages.vae_start import start_gsvae, take_latents

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "pico"
EMBEDDING = "text_model.embeddings.token_embedding.weight"


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Parents:
    """Another reconstruction and autoencoder of pico's architecture."""
    return write_parents(tmp_path_factory.mktemp("others"), PICO)


def denoiser_run(others: Parents, out: Path) -> DiffusionConfig:
    objects = Data(
        grammar="rich", objects=9, validation_objects=2, batch_size=2, views=4, pool_size=0,
        first_views=(0, 3, 27), store_views=False,
    )  # fmt: skip
    return DiffusionConfig(
        backbone="pico", recon=others.recon, vae=others.vae, start=BUNDLE, data=objects,
        run=RunOptions(out=out, threads=1),
    )  # fmt: skip


def test_a_denoiser_goes_on_with_other_latents_only_if_it_is_told(others: Parents, tmp_path: Path) -> None:
    config = denoiser_run(others, tmp_path)
    with pytest.raises(ValueError, match="was trained with another spec than pico"):
        DiffusionStage(config)
    stage = DiffusionStage(dataclasses.replace(config, adapt=True))
    stage.build()
    before = open_parent(BUNDLE, "denoiser").load("denoiser", build_denoiser(stage.spec))
    for name, value in before.state_dict().items():
        assert torch.equal(stage.denoiser.state_dict()[name], value), name
    assert all(parameter.requires_grad for parameter in stage.trained.parameters())
    with pytest.raises(ValueError, match="was trained with another spec than nano"):
        DiffusionStage(dataclasses.replace(config, backbone="nano", adapt=True))


def test_words_keep_their_embeddings_in_a_larger_vocabulary(others: Parents, tmp_path: Path) -> None:
    """Whatever row a word has now; a new word begins as the longest known one that begins it."""
    stage = DiffusionStage(dataclasses.replace(denoiser_run(others, tmp_path), adapt=True))
    stage.build()
    start = open_parent(BUNDLE, "denoiser")
    (encoder,) = PICO.text.encoders
    (known,) = BACKBONES["pico"].text.encoders
    old_tokens = Tokenizer.for_encoder(BUNDLE / "tokenizer.json", known).vocabulary
    known = dataclasses.replace(known, config={**known.config, "vocab_size": len(old_tokens)})
    before = start.load(TEXT_ENCODER, build_encoder(known)).state_dict()
    assert stage.text_facts.tokenizer_json is not None
    tokens = Tokenizer.for_encoder(stage.text_facts.tokenizer_json, encoder).vocabulary
    after = stage.trained[TEXT_ENCODER].state_dict()
    assert set(old_tokens) < set(tokens) and after[EMBEDDING].shape[0] == len(tokens)
    for word, row in old_tokens.items():
        assert torch.equal(after[EMBEDDING][tokens[word]], before[EMBEDDING][row]), word
    assert torch.equal(after[EMBEDDING][tokens["cubes"]], before[EMBEDDING][old_tokens["cube"]])
    assert not (after[EMBEDDING][tokens["bunny"]] == before[EMBEDDING]).all(dim=1).any()
    for name in before:
        assert name == EMBEDDING or torch.equal(after[name], before[name]), name


def test_each_object_may_be_seen_from_some_of_the_reference_views(others: Parents, tmp_path: Path) -> None:
    config = dataclasses.replace(denoiser_run(others, tmp_path), adapt=True, views_each=1)

    def encoded(config: DiffusionConfig, validation: bool) -> LatentCache:
        stage = DiffusionStage(config)
        stage.build()
        return stage._cache(validation)

    by_turns = encoded(config, False)
    pairs = dict(zip(by_turns.objects.tolist(), by_turns.first_views.tolist(), strict=True))
    assert pairs == {index: (0, 3, 27)[index % 3] for index in range(9)}
    everything = encoded(dataclasses.replace(config, views_each=0), False)  # what was cached is of another kind
    assert len(everything) == 27 and len(encoded(config, True)) == 6
    with pytest.raises(ValueError, match="views_each = 4 must lie in"):
        dataclasses.replace(config, views_each=4).check()


def test_an_autoencoder_goes_on_with_another_reconstruction_only_if_it_is_told(others: Parents) -> None:
    config = VaeConfig(
        backbone="pico", recon=others.recon, vae=BUNDLE, data=Data(objects=4, validation_objects=1, batch_size=2)
    )
    with pytest.raises(ValueError, match="was trained on another recon stage"):
        VaeStage(config)
    stage = VaeStage(dataclasses.replace(config, adapt=True))
    stage.build()
    before = open_parent(BUNDLE, "gsvae").load("gsvae", build_gsvae(PICO))
    for name, value in before.state_dict().items():
        assert torch.equal(stage.gsvae.state_dict()[name], value), name
    for wrong in ({"part": "decoder"}, {"vae": None}):
        with pytest.raises(ValueError, match="adapt = True: needs vae and part = 'all'"):
            dataclasses.replace(config, adapt=True, **wrong).check()


def test_an_autoencoder_goes_on_with_more_latent_channels_only_if_it_is_told(others: Parents) -> None:
    """At first the channels it had are as they were, and nothing reads the new ones."""
    start = open_parent(BUNDLE, "gsvae")
    wider = dataclasses.replace(PICO, gsvae={**PICO.gsvae, "latent_channels": 6})
    config = VaeConfig(backbone="pico", recon=others.recon, vae=BUNDLE, adapt=True)
    before, after = start.load("gsvae", build_gsvae(PICO)), start_gsvae(wider, config, start)
    grid = random_grid()
    with torch.no_grad():
        old, new = before.posterior(grid), after.posterior(grid)
        for values, wide in zip(old, new, strict=True):
            assert wide.shape[2] == 6
            torch.testing.assert_close(wide[:, :, :4], values)
        assert new.mean[:, :, 4:].std() > 0.1 and new.log_variance[:, :, 4:].max() < -4.0
        torch.testing.assert_close(after.decode_unclamped(new.mean), before.decode_unclamped(old.mean))
    assert all(parameter.requires_grad for parameter in after.parameters())
    with pytest.raises(ValueError, match=r"has 4 latent channels and pico 6: this needs adapt = True"):
        start_gsvae(wider, dataclasses.replace(config, adapt=False), start)


def test_an_autoencoder_goes_on_with_those_of_its_latent_channels_that_vary_most(others: Parents) -> None:
    start = open_parent(BUNDLE, "gsvae")
    moments = {"mean": [0.0] * 4, "std": [0.1, 0.9, 0.2, 0.8]}
    varied = dataclasses.replace(start, facts={**start.facts, "latent_channels": moments})
    narrower = dataclasses.replace(PICO, gsvae={**PICO.gsvae, "latent_channels": 2})
    config = VaeConfig(backbone="pico", recon=others.recon, vae=BUNDLE, adapt=True)
    before, after = start.load("gsvae", build_gsvae(PICO)), start_gsvae(narrower, config, varied)
    grid, kept = random_grid(), [1, 3]
    with torch.no_grad():
        old, new = before.posterior(grid), after.posterior(grid)
        for values, narrow in zip(old, new, strict=True):
            torch.testing.assert_close(narrow, values[:, :, kept])
        before.vae.post_quant_conv.bias.zero_()  # a part of it would be missing at the borders
        take_latents(after, before, kept)
        alone = torch.zeros_like(old.mean)
        alone[:, :, kept] = new.mean
        torch.testing.assert_close(after.decode_unclamped(new.mean), before.decode_unclamped(alone))


def random_grid() -> torch.Tensor:
    """Splat grids of two views."""
    return torch.rand(1, 2, 12, 32, 32, generator=torch.Generator().manual_seed(0)) * 2.0 - 1.0


@pytest.mark.parametrize("channels", [2, 6])
def test_a_denoiser_goes_on_with_another_number_of_latent_channels(
    channels: int, others: Parents, tmp_path: Path
) -> None:
    """It reads and writes the first ones as before, rays too, and does not read new ones."""
    start = open_parent(BUNDLE, "denoiser")
    known = BackboneSpec.from_dict(start.facts["spec"])
    spec = dataclasses.replace(
        known,
        latent_channels=channels,
        denoiser={**known.denoiser, "in_channels": channels + 6, "out_channels": channels},
        gsvae={**known.gsvae, "latent_channels": channels},
    )
    assert may_start(spec, adapted(known, spec)) and not may_start(spec, known)
    before = start.load("denoiser", build_denoiser(PICO)).state_dict()
    after = start_denoiser(denoiser_run(others, tmp_path), spec, start).state_dict()
    assert before.keys() == after.keys()
    other = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert other == {"conv_in.weight", "conv_out.weight", "conv_out.bias"}
    shared = min(channels, PICO.latent_channels)
    old, new = before["conv_in.weight"], after["conv_in.weight"]
    assert torch.equal(new[:, :shared], old[:, :shared]) and not new[:, shared:channels].any()
    assert torch.equal(new[:, channels:], old[:, PICO.latent_channels :])
    for name in ("conv_out.weight", "conv_out.bias"):
        assert torch.equal(after[name][:shared], before[name][:shared])
