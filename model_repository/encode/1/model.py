from diffsplat.serving.stage_models.models import EncodeModel as TritonPythonModel  # noqa: F401
