"""Builders of back ends that need more than an ONNX file; each is imported only when its back end is tried."""
