"""Benchmarks: a module of this room measures every figure of the README; `python -m benchmarks` runs them all."""
