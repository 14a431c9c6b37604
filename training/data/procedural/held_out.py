"""Pairs of noun and colour that training never shows, so that an evaluation can ask for new combinations.

Every shape and every colour of the palette lacks one or two partners, also in two-object scenes and patterns.
"""

HELD_OUT_SHAPES: frozenset[tuple[str, str]] = frozenset(
    {
        ("sphere", "brown"),
        ("sphere", "cyan"),
        ("cube", "purple"),
        ("cube", "pink"),
        ("cone", "blue"),
        ("cone", "grey"),
        ("cylinder", "yellow"),
        ("cylinder", "magenta"),
        ("torus", "green"),
        ("torus", "orange"),
        ("torus", "white"),
        ("capsule", "black"),
        ("pyramid", "cyan"),
        ("pyramid", "red"),
        ("ellipsoid", "orange"),
        ("ellipsoid", "blue"),
        ("box", "green"),
        ("box", "white"),
        ("dome", "purple"),
        ("wedge", "pink"),
        ("prism", "brown"),
        ("diamond", "yellow"),
        ("ring", "red"),
        ("ring", "grey"),
    }
)
HELD_OUT_OBJECTS: frozenset[tuple[str, str]] = frozenset(
    {
        ("teddy bear", "purple"),
        ("frog", "blue"),
        ("frog", "pink"),
        ("duck", "red"),
        ("fish", "purple"),
        ("bunny", "blue"),
        ("toy robot", "orange"),
        ("toy robot", "green"),
        ("doll", "cyan"),
        ("hat", "pink"),
        ("chair", "red"),
        ("chair", "cyan"),
        ("table", "yellow"),
        ("lamp", "green"),
        ("bed", "orange"),
        ("sofa", "purple"),
        ("mug", "yellow"),
        ("mug", "magenta"),
        ("book", "purple"),
        ("book", "orange"),
        ("candle", "cyan"),
        ("umbrella", "magenta"),
        ("flower", "blue"),
        ("mushroom", "green"),
        ("car", "green"),
        ("car", "brown"),
        ("truck", "yellow"),
        ("rocket", "purple"),
        ("boat", "pink"),
        ("airplane", "green"),
        ("submarine", "red"),
        ("cupcake", "green"),
    }
)
HELD_OUT = HELD_OUT_SHAPES | HELD_OUT_OBJECTS
