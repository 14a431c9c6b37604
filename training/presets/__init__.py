"""All presets by name. A preset is a configuration whose fields the command line may override."""

import dataclasses
from pathlib import Path
from typing import Any

from training.config.chain import BundleConfig, RecipeConfig, RefineConfig
from training.config.common import StageConfig
from training.config.controlnet import ControlNetConfig
from training.config.encode_text import UNPUBLISHED, EncodeTextConfig
from training.config.evaluate import EvaluateConfig
from training.presets import controlnet, elevest, encode_text, furniture, nano, pico, published

_OWN_STAGES = {
    "recon": "reconstruction: images of an object -> grid of Gaussians",
    "vae": "autoencoder: grid of Gaussians <-> latents",
    "diffusion": "denoiser and text encoder on cached latents",
    "decoder": "autoencoder: its decoder again, now trained on renders; the latents stay",
    "tiny-decoder": "autoencoder: a small decoder beside it, for rendering losses and previews",
}


def _control(config: ControlNetConfig) -> str:
    return f"ControlNet: a {config.control} map of view 0 steers a frozen {config.backbone}"


STAGES: dict[str, tuple[str, StageConfig]] = {
    f"{name}/{stage}": (_OWN_STAGES[stage], config)
    for name, recipe in (("nano", nano.RECIPE), ("pico", pico.RECIPE))
    for stage, config in recipe.stages.items()
}
STAGES |= {config.preset: (_control(config), config) for config in controlnet.NANO}
STAGES |= {
    config.preset: (description, config)
    for description, config in (
        ("denoiser: nano's again, now with a rendering loss", nano.DIFFUSION_RENDER),
        ("image autoencoder of nano, for condition images", nano.IMAGE_VAE),
        ("denoiser of nano that sees an image, from the one that reads text alone", nano.DIFFUSION_IMAGE),
    )
}
_ELEVATION = "elevation: a photo -> how high its camera stood, negative above the horizon"
STAGES[elevest.NANO.preset] = (_ELEVATION, elevest.NANO)
STAGES[furniture.RECON.preset] = ("reconstruction: nano's, fine-tuned on real meshes", furniture.RECON)
RECIPES: dict[str, tuple[str, RecipeConfig]] = {
    "nano": (f"the whole chain {' -> '.join(nano.RECIPE.stages)} -> bundle, hours on two cores", nano.RECIPE),
    "pico": ("the whole chain, small: about half an hour on two cores", pico.RECIPE),
}


def _refinement(name: str, bundle: str, stage: str, config: StageConfig) -> RefineConfig:
    """Further training of one stage of a shipped bundle, with its preset."""
    config = dataclasses.replace(config, preset=f"{name}/{stage}")
    return RefineConfig(bundle=Path("bundles") / bundle, out=Path("runs") / name / stage, name=stage, stage=config)


REFINEMENTS: dict[str, tuple[str, RefineConfig]] = {
    "nano-refined": ("further training of denoiser and text encoder, from bundles/nano", nano.REFINEMENT),
    **{
        f"{name}-refined/{stage}": (
            f"further training of bundles/{name}: {_OWN_STAGES[stage].partition(':')[0]} ({stage}), then a new bundle",
            _refinement(f"{name}-refined", name, stage, recipe.stages[stage]),
        )
        for name, recipe in (("nano", nano.RECIPE), ("pico", pico.RECIPE))
        for stage in ("recon", "decoder", "tiny-decoder")
    },
}
PUBLISHED: dict[str, tuple[str, StageConfig]] = {
    published.GSRECON.preset: ("GSRecon, from random weights", published.GSRECON),
    **{name: (published.description(config), config) for name, config in published.GSVAES.items()},
    **{name: (published.description(config), config) for name, config in published.GSDIFFS.items()},
    **{config.preset: (_control(config), config) for config in controlnet.PUBLISHED},
    elevest.PUBLISHED.preset: (f"{_ELEVATION}, from DINOv2", elevest.PUBLISHED),
}
TEXTS: dict[str, tuple[str, EncodeTextConfig]] = {
    name: (
        "refused: " + UNPUBLISHED[config.backbone].partition(",")[0]
        if config.backbone in UNPUBLISHED
        else f"text embeddings of a data set's captions, for {config.backbone}",
        config,
    )
    for name, config in encode_text.ENCODE_TEXT.items()
}
OTHERS: dict[str, tuple[str, Any]] = {
    "bundle": ("a bundle from finished runs, bundles and base models", BundleConfig()),
    "evaluate": ("figures and a contact sheet of a finished run or a bundle, on unseen objects", EvaluateConfig()),
}
GROUPS: dict[str, dict[str, Any]] = {
    "whole chains": RECIPES,
    "further training of a bundle": REFINEMENTS,
    "published runs": PUBLISHED,
    "stages of our own networks": STAGES,
    "text embeddings": TEXTS,
    "what is made of runs": OTHERS,
}
