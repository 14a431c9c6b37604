"""True objects of the generator, rendered exactly as a bundle's generated objects are.

Axes: N objects, V views, S pixels of a side. Views are straight-alpha RGBA, here and for generated objects, so that
colours and silhouettes do not depend on the background.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsplat.backbones import BackboneSpec
from diffsplat.bundle import Bundle
from diffsplat.geometry.cameras import orbit_camera_to_world
from training.data.camera_chain import y_up_to_z_up
from training.data.procedural.object_words import ObjectWords
from training.data.procedural.objects import COMPOSITES
from training.data.procedural.palette import PALETTE
from training.data.procedural.render import render_views
from training.data.procedural.solids import SIZES
from training.data.procedural.synthetic import SyntheticObject, build_object, synthetic_object
from training.data.procedural.synthetic_config import CONFIGS, SyntheticConfig

_FIRST_COLOURS = tuple(colour for colour in PALETTE if colour != "white")  # of bundles whose lineage names none
_FIRST_KIND_WEIGHTS = (0.35, 0.20, 0.45, 0.0)
EVALUATION_SEED = 9_000  # a series of objects that training never uses; every bundle's lineage is checked for it


def bundle_config(bundle: Bundle) -> SyntheticConfig:
    """What the bundle was trained on, from its lineage; without a named grammar the basic one.

    Raises:
        ValueError: the lineage names an unknown grammar, or training used the objects of this benchmark.
    """
    stages: dict[str, dict[str, Any]] = bundle.lineage.get("stages", {})
    if EVALUATION_SEED in {stage.get("data", {}).get("seed") for stage in stages.values()}:
        raise ValueError(f"{bundle.root}: trained on data seed {EVALUATION_SEED}, whose objects are the test")
    try:
        return trained_config(stages)
    except ValueError as error:
        raise ValueError(f"{bundle.root}: {error}") from error


def trained_config(stages: Mapping[str, Mapping[str, Any]]) -> SyntheticConfig:
    """What the stages of a lineage were trained on.

    Raises:
        ValueError: the lineage names an unknown grammar.
    """
    data = stages.get("diffusion", {}).get("data", {})
    grammar = data.get("grammar", "basic")
    if grammar not in CONFIGS:
        raise ValueError(f"lineage names grammar = {grammar!r}, must be one of {', '.join(CONFIGS)}")
    config = CONFIGS[grammar]
    if grammar == "rich":
        colours, weights = data.get("colours", _FIRST_COLOURS), data.get("kind_weights", _FIRST_KIND_WEIGHTS)
        config = replace(config, colours=tuple(colours), kind_weights=tuple(weights))
    return config


def views_elevation_deg(spec: BackboneSpec) -> float:
    """Elevation of the views that a text bundle generates, in degrees.

    Raises:
        ValueError: the bundle has no default, since it takes the elevation from the request's image.
    """
    if spec.elevation_deg is None:
        raise ValueError(f"{spec.name}: has no default elevation; only text bundles are judged")
    return spec.elevation_deg


def nouns_of(config: SyntheticConfig) -> tuple[str, ...]:
    """Every shape and composite object: the nouns of the shape probe."""
    return config.shapes + config.composites


def words_of(
    noun: str, colour: str, config: SyntheticConfig, size: str = "medium", pattern: str = "plain", second: str = ""
) -> ObjectWords:
    """Facts of a single object; composite objects have one size."""
    size = "large" if noun in COMPOSITES else size
    return ObjectWords(noun, colour, size, pattern, second, grammar=config.grammar)


def true_object(words: ObjectWords, number: int, config: SyntheticConfig) -> SyntheticObject:
    """Instance `number` of an object with these words; numbers differ in what the words leave open."""
    if config.grammar == "rich":
        return build_object(words, EVALUATION_SEED, number, config)
    return _basic_block(number, config)[words]


def true_instances(words: ObjectWords, numbers: Sequence[int], config: SyntheticConfig) -> list[SyntheticObject]:
    """Instances of a caption without a size, in all sizes by turns."""
    sizes = tuple(SIZES) if words.shape not in COMPOSITES and not words.relation else (words.size,)
    return [true_object(words._replace(size=sizes[n % len(sizes)]), n, config) for n in numbers]


def render_true(objects: Sequence[SyntheticObject], spec: BackboneSpec, size: int) -> Tensor:
    """The views that the spec's denoiser generates, each object from its own distance: [N, V, 4, S, S]."""
    views = spec.geometry.views
    azimuths = torch.arange(views) * (360.0 / views)
    elevations = torch.full((views,), views_elevation_deg(spec))
    seen = []
    for made in objects:
        distance = float(np.linalg.norm(made.camera_to_world_zup[0, :3, 3]))
        poses = orbit_camera_to_world(elevations, azimuths, torch.full((views,), distance))
        rgba = render_views(made.primitives, y_up_to_z_up(poses.double().numpy()), size).rgba
        seen.append(torch.from_numpy(rgba).permute(0, 3, 1, 2))
    return torch.stack(seen)


def on_white(views: Tensor) -> Tensor:
    """[..., 4, S, S] -> [..., 3, S, S]."""
    rgb, alpha = views[..., :3, :, :], views[..., 3:, :, :]
    return rgb * alpha + 1.0 - alpha


def from_white(images: Tensor) -> Tensor:
    """Frames on white without alpha, [..., 3, S, S], as views: what differs clearly from white is opaque."""
    opaque = images.amin(dim=-3, keepdim=True) < 0.85
    return torch.cat([images, opaque.to(images)], dim=-3)


@functools.lru_cache(maxsize=64)
def _basic_block(number: int, config: SyntheticConfig) -> dict[ObjectWords, SyntheticObject]:
    """One block of the basic series: every combination of facts once."""
    count = len(config.shapes) * len(config.colours) * len(config.sizes)
    made = [synthetic_object(EVALUATION_SEED, number * count + place, config) for place in range(count)]
    return {item.words: replace(item) for item in made}
