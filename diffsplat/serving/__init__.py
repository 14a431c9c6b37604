"""Serving: the engine, the stages inside Triton, the server below a supervisor, and the edge that clients reach."""
