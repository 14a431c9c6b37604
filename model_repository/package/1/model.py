from diffsplat.serving.stage_models.models import PackageModel as TritonPythonModel  # noqa: F401
