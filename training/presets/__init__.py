"""All presets by name. A preset is a configuration whose fields the command line may override."""

from training.config.chain import RecipeConfig, RefineConfig
from training.config.common import StageConfig
from training.config.encode_text import UNPUBLISHED, EncodeTextConfig
from training.presets import encode_text, nano, pico

STAGES: dict[str, tuple[str, StageConfig]] = {
    f"{name}/{stage}": (description, getattr(recipe, stage))
    for name, recipe in (("nano", nano.RECIPE), ("pico", pico.RECIPE))
    for stage, description in (
        ("recon", "reconstruction: images of an object -> grid of Gaussians"),
        ("vae", "autoencoder: grid of Gaussians <-> latents"),
        ("diffusion", "denoiser and text encoder on cached latents"),
        ("decoder", "autoencoder: its decoder again, now trained on renders; the latents stay"),
    )
}
RECIPES: dict[str, tuple[str, RecipeConfig]] = {
    "nano": ("the whole chain recon -> vae -> diffusion -> decoder -> bundle, hours on two cores", nano.RECIPE),
    "pico": ("the whole chain, small: about half an hour on two cores", pico.RECIPE),
}
REFINEMENTS: dict[str, tuple[str, RefineConfig]] = {
    "nano-refined": ("further training of denoiser and text encoder, from bundles/nano", nano.REFINEMENT),
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
