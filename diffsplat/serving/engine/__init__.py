"""The denoise engine: in-flight batching of all active requests, without diffusion or Triton in it."""
