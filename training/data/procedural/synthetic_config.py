"""Configurations of the procedural generator."""

from dataclasses import dataclass
from typing import Literal

from training.data.procedural.grammar import RELATIONS
from training.data.procedural.objects import COMPOSITES
from training.data.procedural.palette import COLOURS, PALETTE
from training.data.procedural.solids import ALL_SHAPES, PATTERNS, SHAPES, SIZES
from training.data.views import GOBJAVERSE_LAYOUT, ViewLayout


@dataclass(frozen=True)
class SyntheticConfig:
    """Angles in degrees, lengths in units of the object's unit box.

    The defaults are those of the basic generator: single plain shapes in balanced blocks, with captions of the basic
    grammar. The fields after `layout` are for the rich one.
    """

    shapes: tuple[str, ...] = tuple(SHAPES)
    colours: tuple[str, ...] = tuple(COLOURS)
    sizes: tuple[str, ...] = tuple(SIZES)
    size_jitter: float = 0.06  # an object is up to this share smaller than its size says
    distance_range: tuple[float, float] = (1.4, 1.5)
    layout: ViewLayout = GOBJAVERSE_LAYOUT

    grammar: Literal["basic", "rich"] = "basic"
    patterns: tuple[str, ...] = ("plain",)
    relations: tuple[str, ...] = ()
    composites: tuple[str, ...] = ()
    # single shapes, two-shape scenes, composite objects, several of a shape or object
    kind_weights: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 0.0)
    pattern_share: float = 0.35  # of single shapes, when there are patterns
    yaw_range_deg: tuple[float, float] = (
        -30.0,
        30.0,
    )  # rich only: objects face the first view, so that it can be learnt
    held_out: Literal["shown", "never", "only"] = "shown"  # the pairs of `held_out.HELD_OUT`

    def __post_init__(self) -> None:
        basic = self.grammar == "basic"
        shapes, colours = (SHAPES, COLOURS) if basic else (ALL_SHAPES, PALETTE)
        for field, known in (("shapes", shapes), ("colours", colours), ("sizes", SIZES), ("patterns", PATTERNS)):
            values = getattr(self, field)
            if not values or not set(values) <= set(known):
                raise ValueError(f"{field} = {values} must be a non-empty choice from {tuple(known)}")
        for field, options in (("relations", tuple(RELATIONS)), ("composites", tuple(COMPOSITES))):
            values = getattr(self, field)
            if not set(values) <= set(options):
                raise ValueError(f"{field} = {values} must all be among {options}")
        if "plain" not in self.patterns:
            raise ValueError(f"patterns = {self.patterns} must contain 'plain'")
        if basic and (self.patterns != ("plain",) or self.relations or self.composites or self.held_out != "shown"):
            raise ValueError("patterns, relations, composites and held_out need grammar = 'rich'")
        _, pairs, objects, several = self.kind_weights
        if basic and several > 0:
            raise ValueError(f"kind_weights = {self.kind_weights}: several objects need grammar = 'rich'")
        if min(self.kind_weights) < 0 or sum(self.kind_weights) <= 0:
            raise ValueError(f"kind_weights = {self.kind_weights} must not be negative or all zero")
        if (pairs > 0 and not self.relations) or (objects > 0 and not self.composites):
            raise ValueError(
                f"kind_weights = {self.kind_weights} asks for scenes or composites without relations or composites"
            )
        if pairs > 0 and (len(self.shapes) < 2 or len(self.colours) < 2):
            raise ValueError("two-shape scenes need at least two shapes and two colours")


DEFAULT_CONFIG = SyntheticConfig()
RICH_CONFIG = SyntheticConfig(
    shapes=tuple(ALL_SHAPES),
    colours=tuple(PALETTE),
    grammar="rich",
    patterns=PATTERNS,
    relations=tuple(RELATIONS),
    composites=tuple(COMPOSITES),
    kind_weights=(0.34, 0.18, 0.34, 0.14),
    pattern_share=0.45,
    held_out="never",
)
CONFIGS = {"basic": DEFAULT_CONFIG, "rich": RICH_CONFIG}  # by grammar
