from diffsplat.serving.stage_models.models import DecodeModel as TritonPythonModel  # noqa: F401
