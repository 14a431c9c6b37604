from diffsplat.serving.triton import EncodeModel as TritonPythonModel  # noqa: F401
