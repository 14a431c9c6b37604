from diffsplat.serving.stage_models.models import ReconstructModel as TritonPythonModel  # noqa: F401
