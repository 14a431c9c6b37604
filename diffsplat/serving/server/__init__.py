"""One run of a tritonserver: what it needs, how it is started and stopped, and what it tells meanwhile."""
