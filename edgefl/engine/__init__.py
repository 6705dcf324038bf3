"""Training engines on the device: one contract, two ways through ONNX Runtime."""
