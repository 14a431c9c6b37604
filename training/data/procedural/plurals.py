"""Plurals of the names of shapes and objects."""

_IRREGULAR = {
    "bunny": "bunnies",
    "cactus": "cacti",
    "fish": "fish",
    "lorry": "lorries",
    "person": "people",
    "snowman": "snowmen",
    "torus": "tori",
}
_HISSING = ("s", "x", "ch", "sh")


def plural(noun: str) -> str:
    """The plural of a noun, of whose words only the last changes: "coffee cups"."""
    *before, last = noun.split()
    many = _IRREGULAR.get(last) or last + ("es" if last.endswith(_HISSING) else "s")
    return " ".join([*before, many])
