"""File formats of splat clouds, numpy alone."""
