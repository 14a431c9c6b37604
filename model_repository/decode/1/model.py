from diffsplat.serving.triton import DecodeModel as TritonPythonModel  # noqa: F401
