"""What the service is made of: one class per stage, the denoise engine, Triton's adapters and the launcher.

encode.py  denoise.py  decode.py  rasterize.py  package.py   the stages, without Triton; `pipeline.py` runs them too
envelope.py    a request on its way through the stages
engine.py      in-flight batching: one thread, one step for all active requests
triton.py      the classes that `model_repository/*/1/model.py` names
server.py      starts and stops the wheel's tritonserver (`diffsplat serve`)
prerequisites.py   what the machine must have; runs before anything is installed
"""
