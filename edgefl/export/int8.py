"""The `serve` graph: a version's forward pass in int8 arithmetic, with its weights inside.

Model: post-training static quantisation (Jacob et al., CVPR 2018, https://arxiv.org/abs/1712.05877) by ONNX Runtime's quantiser.
Weights become int8 with one scale per channel, activations int8 with one scale per tensor, from the smallest and largest value
that calibration examples give. Around each operator stand QuantizeLinear and DequantizeLinear (QDQ), standard operators which
every runtime computes alike and ONNX Runtime fuses into integer kernels.

Rules: only layers that multiply matrices, and what merely passes values on between them, are quantised; normalisation stays in
float32, where it costs little and its small values would suffer. Signed activations: x86 processors without VNNI saturate sums of
products of unsigned and signed bytes, and would give other answers than a board. The same inputs give the same bytes.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from edgefl.engine.runtime import converted, onnxruntime
from edgefl.export.slim import IR_VERSION
from edgefl.export.tracing import quiet
from edgefl.layout import Float32, Layout

QUANTISED = ["Conv", "Gemm", "MatMul", "MaxPool", "Relu", "Reshape", "Squeeze", "Transpose", "Unsqueeze"]
ROWS = 32
"""Calibration examples at a time."""


def int8_graph(infer: bytes, layout: Layout, vector: Float32, calibration: Float32) -> bytes:
    """The `serve` graph: input `x`, output `logits`.

    Args:
        infer: the `infer` graph.
        layout: of the vector.
        vector: the version's weights as a device decodes them.
        calibration: examples that are typical of what devices see, float32, shape `(n, *input_shape)`.

    Raises:
        EngineError: the quantiser cannot do it.
    """
    onnxruntime()  # before the quantiser, which imports it without our precautions
    with converted("the model cannot be quantised to int8"), tempfile.TemporaryDirectory(prefix="edgefl-") as directory, quiet():
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static  # noqa: PLC0415  after the line above
        from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: PLC0415  as above

        plain, ready, done = (Path(directory) / name for name in ("plain.onnx", "ready.onnx", "done.onnx"))
        onnx.save(_with_weights(infer, layout, vector), plain)
        quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
        quantize_static(
            str(ready),
            str(done),
            _Reader(calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=QUANTISED,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
        )
        return _stripped(onnx.load(done))


class _Reader:
    """Hands calibration examples to the quantiser, which asks until it gets None."""

    def __init__(self, x: Float32) -> None:
        self._parts: Iterator[Float32] = (x[start : start + ROWS] for start in range(0, len(x), ROWS))

    def get_next(self) -> dict[str, Float32] | None:
        """The next part."""
        part = next(self._parts, None)
        return None if part is None else {"x": part}


def _with_weights(infer: bytes, layout: Layout, vector: Float32) -> onnx.ModelProto:
    """The graph with its weights as constants instead of inputs."""
    model = onnx.load_from_string(infer)
    views = layout.views(vector)
    inputs = [value for value in model.graph.input if value.name not in views]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.graph.initializer.extend(numpy_helper.from_array(np.ascontiguousarray(view), name) for name, view in views.items())
    return model


def _stripped(model: onnx.ModelProto) -> bytes:
    """The bytes of a model without what is for people, and without operator sets that it does not use."""
    graph = model.graph
    used = {node.domain for node in graph.node} | {""}
    versions = [(o.domain, o.version) for o in model.opset_import if o.domain in used]
    del model.opset_import[:], model.metadata_props[:], graph.value_info[:]
    model.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in sorted(versions))
    for node in graph.node:
        node.ClearField("name")
        node.ClearField("doc_string")
    graph.name = "g"
    for text in ("producer_name", "producer_version", "doc_string", "domain", "model_version"):
        model.ClearField(text)
    model.ir_version = IR_VERSION
    data: bytes = model.SerializeToString(deterministic=True)
    return data
