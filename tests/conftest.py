"""Fixtures that several rooms' tests share: a very small bundle with random weights, pico, and the exports of both."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # at run time inside the fixtures: the client's tests start without torch
    from diffsplat.backbones import BackboneSpec
    from diffsplat.bundle import Bundle

MAX_TOKENS = 8
PICO = Path(__file__).resolve().parents[1] / "bundles" / "pico"
CAPTIONS = [f"a {color} {shape}" for color in ("red", "green", "blue") for shape in ("cube", "sphere", "cone")]


def tiny_spec(vocab_size: int) -> BackboneSpec:
    """PICO with every network shrunken; geometry, latents and noise schedule are PICO's."""
    from diffsplat.backbones import PICO, TextSpec

    (encoder,) = PICO.text.encoders
    config = {**encoder.config, "hidden_size": 16, "intermediate_size": 32, "vocab_size": vocab_size}
    config["max_position_embeddings"] = MAX_TOKENS
    return dataclasses.replace(
        PICO,
        name="tiny",
        text=TextSpec((dataclasses.replace(encoder, max_tokens=MAX_TOKENS, config=config),)),
        denoiser={
            **PICO.denoiser,
            "block_out_channels": [8, 16],
            "attention_head_dim": 2,
            "norm_num_groups": 4,
            "cross_attention_dim": 16,
        },
        gsvae={**PICO.gsvae, "block_out_channels": [8, 8, 16], "norm_num_groups": 4, "scaling_factor": 0.7},
        gsrecon={**PICO.gsrecon, "dim": 16, "num_blocks": 1, "num_heads": 2},
        steps=4,
    )


def write_tiny_bundle(folder: Path, seed: int = 0) -> Bundle:
    """A bundle of `tiny_spec` with random weights; the same seed gives the same bytes."""
    import torch

    from diffsplat.bundle import write_bundle
    from diffsplat.networks import network_builders
    from diffsplat.text.tokenizer import Tokenizer, train_tokenizer

    tokenizer_json = train_tokenizer(CAPTIONS, MAX_TOKENS)
    spec = tiny_spec(Tokenizer.from_json(tokenizer_json).vocab_size)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        networks = {name: build() for name, build in network_builders(spec).items()}
    return write_bundle(folder, spec, networks, [tokenizer_json], {"seed": seed})


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with random weights. Read only: copy it before damaging it."""
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="session")
def exported_repository(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The served repository of `tiny_bundle`, exported once, back ends chosen by measurement. Read only."""
    from export.repository import export_repository

    return export_repository(tiny_bundle.root, tmp_path_factory.mktemp("repositories") / "tiny").folder


@pytest.fixture(scope="session")
def pico_bundle() -> Bundle:
    """The trained bundle that comes with the repository. Read only."""
    from diffsplat.bundle import open_bundle

    return open_bundle(PICO)


@pytest.fixture(scope="session")
def pico_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The served repository of pico, exported once. Read only."""
    from export.repository import export_repository

    return export_repository(PICO, tmp_path_factory.mktemp("repositories") / "pico").folder
