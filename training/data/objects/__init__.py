"""Composite everyday objects by theme; each is a short function that lists primitives.

`COMPOSITES` maps a noun to its builder, its synonyms and its colours.
"""

from training.data.objects.animals import ANIMALS
from training.data.objects.food import FOOD
from training.data.objects.household import HOUSEHOLD
from training.data.objects.kind import Composite, Draw
from training.data.objects.outdoors import OUTDOORS
from training.data.objects.toys import TOYS
from training.data.objects.vehicles import VEHICLES

COMPOSITES: dict[str, Composite] = {**ANIMALS, **TOYS, **HOUSEHOLD, **OUTDOORS, **VEHICLES, **FOOD}

__all__ = ["COMPOSITES", "Composite", "Draw"]
