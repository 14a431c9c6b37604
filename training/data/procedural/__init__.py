"""Procedural objects: drawn (`scenes`, `synthetic_config`) from named shapes and composites, described in words, cast.

Shapes (`solids`) and composites (`objects`) are made of primitives (`shapes`, `parts`); `captions` and `grammar`
describe them.
"""
