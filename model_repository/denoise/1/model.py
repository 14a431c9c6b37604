from diffsplat.serving.triton_denoise import DenoiseModel as TritonPythonModel  # noqa: F401
