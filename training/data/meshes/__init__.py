"""Meshes -> records: files of 3D models, rendered by ray casting."""
