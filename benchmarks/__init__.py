"""Numbers: every figure of the README is printed by a module of this room; `python -m benchmarks` runs them all."""
