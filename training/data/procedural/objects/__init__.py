"""Composite everyday objects by theme; each is a short function that lists primitives.

`COMPOSITES` maps a noun to its builder, its synonyms and its colours.
"""

from training.data.procedural.objects.animals import ANIMALS
from training.data.procedural.objects.food import FOOD
from training.data.procedural.objects.household import HOUSEHOLD
from training.data.procedural.objects.kind import Composite, Draw
from training.data.procedural.objects.outdoors import OUTDOORS
from training.data.procedural.objects.toys import TOYS
from training.data.procedural.objects.vehicles import VEHICLES

COMPOSITES: dict[str, Composite] = {**ANIMALS, **TOYS, **HOUSEHOLD, **OUTDOORS, **VEHICLES, **FOOD}

__all__ = ["COMPOSITES", "Composite", "Draw"]
