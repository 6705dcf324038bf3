"""From torch to ONNX: training step, evaluation and inference graphs (the only place that imports torch and onnx)."""
