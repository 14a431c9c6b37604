"""Triton's side of the stages: what runs inside the processes of Triton's Python backend."""
