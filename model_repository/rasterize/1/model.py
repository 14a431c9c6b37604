from diffsplat.serving.triton import RasterizeModel as TritonPythonModel  # noqa: F401
