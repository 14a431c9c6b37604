"""Everything that waits for a GPU, in one command: see `__main__.py`."""
