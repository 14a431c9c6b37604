"""Measuring finished runs and bundles, offline: ``python -m training evaluate``."""
