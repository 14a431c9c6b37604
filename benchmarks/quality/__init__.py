"""What a bundle generates, by numbers and pictures: `python -m benchmarks.quality BUNDLE`; see `__main__`."""
