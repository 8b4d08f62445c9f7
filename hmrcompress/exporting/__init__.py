"""ONNX and its parity check."""
