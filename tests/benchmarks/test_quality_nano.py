"""nano makes what it is asked for: twelve prompts, judged by rulers fitted to true renders."""

from dataclasses import replace
from pathlib import Path

from diffsplat_client.request import GenerationRequest

from benchmarks.quality.generation import generate_views
from benchmarks.quality.probe import seen_nouns
from benchmarks.quality.ruler import RulerSize, build_ruler
from diffsplat.bundle import open_bundle
from diffsplat.pipeline import Pipeline
from training.data.procedural.synthetic_config import RICH_CONFIG

NANO = Path(__file__).resolve().parents[2] / "bundles" / "nano"
NOUNS = {"shapes": ("cube", "sphere", "cone"), "composites": ("chair", "rocket", "snowman")}
COLOURS = ("red", "green", "blue", "yellow")


def test_nouns_and_colours_are_recognised() -> None:
    """Six nouns, each in two colours: at most one colour and two nouns may be missed."""
    bundle = open_bundle(NANO)
    size = bundle.spec.geometry.grid_size
    nouns = NOUNS["shapes"] + NOUNS["composites"]
    wanted = [(nouns[i % 6], COLOURS[i % 4]) for i in range(12)]
    requests = [
        GenerationRequest(f"a {colour} {noun}", seed=seed, steps=10)  # half of what it takes by default
        for seed, (noun, colour) in enumerate(wanted)
    ]
    images = generate_views(Pipeline.from_bundle(bundle), requests, size)
    config = replace(RICH_CONFIG, **NOUNS, colours=COLOURS)  # fewer, so that the judges are fitted in seconds
    ruler = build_ruler(config, bundle.spec, size, RulerSize(4, 1, 0, 1, 8), lambda: None, lambda: None)
    colours = [ruler.colours.seen_colour(seen, noun) for seen, (noun, _) in zip(images, wanted, strict=True)]
    assert sum(seen == colour for seen, (_, colour) in zip(colours, wanted, strict=True)) >= 11, colours
    shapes = seen_nouns(ruler.probe, images, ruler.nouns)
    assert sum(seen == noun for seen, (noun, _) in zip(shapes, wanted, strict=True)) >= 10, shapes
