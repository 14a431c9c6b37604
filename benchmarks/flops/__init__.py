"""FLOPs and bytes of every network, counted without weights: `python -m benchmarks.flops`; see `__main__`."""
