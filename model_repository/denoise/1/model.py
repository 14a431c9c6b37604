from diffsplat.serving.stage_models.denoise import DenoiseModel as TritonPythonModel  # noqa: F401
