from diffsplat.serving.triton import DenoiseModel as TritonPythonModel  # noqa: F401
