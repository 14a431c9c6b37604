"""Back ends: each runs a `graph.Graph`; imported only when chosen."""
