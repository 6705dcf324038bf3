"""The forward graphs that both engines share: `infer` (logits) and `eval` (loss and hits), for any number of rows.

Model: `infer(parameters..., x) -> logits` is traced once per variant with a symbolic batch axis. `eval(parameters..., x, y) ->
(loss, correct)` is the same graph with a few nodes behind the logits; `loss` is the sum of cross-entropies, `correct` the
number of right answers, both float32 scalars, so that results of chunks add up.

Rules: weights are inputs, never inside a graph: they travel as one flat vector. Operators whose gradient onnxruntime-training
lacks or gets wrong are written in others (`differentiable`), because it differentiates this graph.
"""

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx, nn

from edgefl.export.differentiable import differentiable
from edgefl.export.models import ModelSource, layout_of
from edgefl.export.tracing import Traced, quiet, refuse_random, to_onnx, untranslatable


def trace_forward(source: ModelSource, module: nn.Module) -> torch.export.ExportedProgram:
    """Trace the module in training mode with a symbolic number of rows; its graph knows the layers.

    Raises:
        ModelError: the model cannot be traced, draws random numbers, or depends on the number of rows.
    """
    example = torch.zeros(3, *source.input_shape)
    try:
        with quiet():
            rows = torch.export.Dim("rows", min=1)
            program = torch.export.export(module, (example,), dynamic_shapes=({0: rows},), strict=False)
    except Exception as error:
        raise untranslatable(source.name, error, fx.Graph()) from error
    refuse_random(program.graph, source.name)
    return program


def forward_graph(source: ModelSource, module: nn.Module, layers: fx.Graph) -> onnx.ModelProto:
    """`infer`, not yet slimmed.

    Raises:
        ModelError: an operator has no ONNX form.
    """
    names = [tensor.name for tensor in layout_of(module).tensors]

    def forward(*flat: Tensor) -> Tensor:
        logits: Tensor = torch.func.functional_call(module, dict(zip(names, flat[:-1], strict=True)), (flat[-1],))
        return logits

    arguments = (*(value.detach().clone() for value in module.parameters()), torch.zeros(3, *source.input_shape))
    shapes = (*((None,) * len(names)), {0: torch.export.Dim("rows", min=1)})
    try:
        with quiet():
            program = torch.export.export(Traced(forward), arguments, dynamic_shapes=(shapes,), strict=False)
            program = program.run_decompositions(differentiable())
    except Exception as error:
        raise untranslatable(source.name, error, layers) from error
    return to_onnx(program, [*names, "x"], ["logits"], name=source.name, layers=layers, simplify=True)


def evaluation_graph(infer: onnx.ModelProto) -> onnx.ModelProto:
    """`eval`: a copy of `infer` that takes the labels and gives the sum of losses and the number of right answers."""
    model = onnx.ModelProto()
    model.CopyFrom(infer)
    graph = model.graph
    axis = numpy_helper.from_array(np.array([1], dtype=np.int64), "eval.axis")
    graph.initializer.append(axis)
    graph.node.extend(
        [
            helper.make_node("LogSoftmax", ["logits"], ["eval.logs"], axis=1),
            helper.make_node("Unsqueeze", ["y", "eval.axis"], ["eval.column"]),
            helper.make_node("GatherElements", ["eval.logs", "eval.column"], ["eval.picked"], axis=1),
            helper.make_node("ReduceSum", ["eval.picked"], ["eval.sum"], keepdims=0),
            helper.make_node("Neg", ["eval.sum"], ["loss"]),
            helper.make_node("ArgMax", ["logits"], ["eval.answer"], axis=1, keepdims=0),
            helper.make_node("Equal", ["eval.answer", "y"], ["eval.hit"]),
            helper.make_node("Cast", ["eval.hit"], ["eval.hits"], to=TensorProto.FLOAT),
            helper.make_node("ReduceSum", ["eval.hits"], ["correct"], keepdims=0),
        ]
    )
    rows = next(value for value in graph.input if value.name == "x").type.tensor_type.shape.dim[0].dim_param
    graph.input.append(helper.make_tensor_value_info("y", TensorProto.INT64, [rows]))
    del graph.output[:]
    graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in ("loss", "correct"))
    return model
