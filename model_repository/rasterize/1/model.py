from diffsplat.serving.stage_models.models import RasterizeModel as TritonPythonModel  # noqa: F401
