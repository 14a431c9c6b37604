from diffsplat.serving.triton import ReconstructModel as TritonPythonModel  # noqa: F401
