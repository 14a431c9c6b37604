from diffsplat.serving.triton import PackageModel as TritonPythonModel  # noqa: F401
