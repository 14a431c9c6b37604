"""Weights -> graphs -> served repository: `python -m export BUNDLE --out DIR`."""
