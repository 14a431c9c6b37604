"""Every preset by name. A preset is a config; what the command line does not override stands here."""

from training.config import RecipeConfig, RefineConfig, StageConfig
from training.presets import nano, pico

STAGES: dict[str, tuple[str, StageConfig]] = {
    f"{name}/{stage}": (description, getattr(recipe, stage))
    for name, recipe in (("nano", nano.RECIPE), ("pico", pico.RECIPE))
    for stage, description in (
        ("recon", "reconstruction: images of an object -> grid of Gaussians"),
        ("vae", "autoencoder: grid of Gaussians <-> latents"),
        ("diffusion", "denoiser and text encoder on cached latents"),
        ("decoder", "autoencoder: its decoder again, now for what is rendered; latents stay"),
    )
}
RECIPES: dict[str, tuple[str, RecipeConfig]] = {
    "nano": ("the whole chain recon -> vae -> diffusion -> decoder -> bundle, hours on two cores", nano.RECIPE),
    "pico": ("the whole chain, small: about half an hour on two cores", pico.RECIPE),
}
REFINEMENTS: dict[str, tuple[str, RefineConfig]] = {
    "nano-refined": ("denoiser and text encoder further, from bundles/nano", nano.REFINEMENT),
}
