"""What a bundle generates, by numbers and images: `python -m benchmarks.quality BUNDLE`; see `__main__`."""
