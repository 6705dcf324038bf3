"""The losses as ONNX nodes behind a forward graph: for evaluation, and for onnxruntime-training, which differentiates them.

Model: a graph that gives `logits` gets the input `y` and gives a loss of both, one of those of `edgefl.export.losses`. An
evaluation sums over the rows, so that batches can be added up; a training takes the mean.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgefl.errors import ModelError
from edgefl.recipe import Recipe

ONE = numpy_helper.from_array(np.array(1.0, dtype=np.float32), "loss.one")
HALF = numpy_helper.from_array(np.array(0.5, dtype=np.float32), "eval.half")
AXIS = numpy_helper.from_array(np.array([1], dtype=np.int64), "eval.axis")

Nodes = Sequence[onnx.NodeProto]


def evaluation_graph(infer: onnx.ModelProto, recipe: Recipe) -> onnx.ModelProto:
    """`eval`: a copy of `infer` that takes `y` and gives `loss`, summed over the rows, and `correct` if the recipe classifies.

    `correct` is the number of right answers; with several outputs of `bce`, each counts as its share of the row.
    """
    model = onnx.ModelProto()
    model.CopyFrom(infer)
    graph = model.graph
    graph.initializer.extend([ONE, HALF, AXIS])
    graph.node.extend({"bce": _bce, "mse": _mse}.get(recipe.loss, _cross_entropy)())
    _declare_targets(graph, recipe)
    names = ("loss", "correct") if recipe.classifies else ("loss",)
    del graph.output[:]
    graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in names)
    return model


def training_loss(infer: onnx.ModelProto, recipe: Recipe) -> onnx.ModelProto:
    """A copy of `infer` that takes `y` and gives the mean `loss` alone, in operators that onnxruntime-training differentiates.

    Raises:
        ModelError: it cannot differentiate this loss.
    """
    if recipe.loss == "masked-cross-entropy":
        raise ModelError(f"onnxruntime-training has no loss {recipe.loss!r}", remedy="Use a profile with the portable engine")
    model = onnx.ModelProto()
    model.CopyFrom(infer)
    graph = model.graph
    if recipe.loss == "cross-entropy":
        graph.node.append(helper.make_node("SoftmaxCrossEntropyLoss", ["logits", "y"], ["loss", "loss.logs"], reduction="mean"))
    else:
        graph.node.extend(_bce_values() if recipe.loss == "bce" else _mse_values())
        graph.node.append(helper.make_node("ReduceMean", ["loss.values"], ["loss"], keepdims=0))
        graph.initializer.append(ONE)
    _declare_targets(graph, recipe)
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("loss", TensorProto.FLOAT, []))
    return model


def _declare_targets(graph: onnx.GraphProto, recipe: Recipe) -> None:
    """Add the input `y` with as many rows as `x` and, unless it holds labels, as many columns as `logits`."""
    rows = next(value for value in graph.input if value.name == "x").type.tensor_type.shape.dim[0].dim_param
    columns = next(value for value in graph.output if value.name == "logits").type.tensor_type.shape.dim[1].dim_value
    labels = recipe.labels
    kind, shape = (TensorProto.INT64, [rows]) if labels else (TensorProto.FLOAT, [rows, columns])
    graph.input.append(helper.make_tensor_value_info("y", kind, shape))


def _cross_entropy() -> Nodes:
    return [
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


def _bce() -> Nodes:
    return [
        *_bce_values(),
        helper.make_node("ReduceMean", ["loss.values", "eval.axis"], ["eval.rows"], keepdims=0),
        helper.make_node("ReduceSum", ["eval.rows"], ["loss"], keepdims=0),
        helper.make_node("Sigmoid", ["logits"], ["eval.chance"]),
        helper.make_node("Greater", ["eval.chance", "eval.half"], ["eval.answer"]),
        helper.make_node("Greater", ["y", "eval.half"], ["eval.truth"]),
        helper.make_node("Equal", ["eval.answer", "eval.truth"], ["eval.hit"]),
        helper.make_node("Cast", ["eval.hit"], ["eval.hits"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["eval.hits", "eval.axis"], ["eval.share"], keepdims=0),
        helper.make_node("ReduceSum", ["eval.share"], ["correct"], keepdims=0),
    ]


def _mse() -> Nodes:
    return [
        *_mse_values(),
        helper.make_node("ReduceMean", ["loss.values", "eval.axis"], ["eval.rows"], keepdims=0),
        helper.make_node("ReduceSum", ["eval.rows"], ["loss"], keepdims=0),
    ]


def _bce_values() -> Nodes:
    """`relu(z) - z*y + log(1 + exp(-|z|))` of each output, in operators that onnxruntime-training differentiates."""
    return [
        helper.make_node("Relu", ["logits"], ["loss.positive"]),
        helper.make_node("Mul", ["logits", "y"], ["loss.product"]),
        helper.make_node("Sub", ["loss.positive", "loss.product"], ["loss.linear"]),
        helper.make_node("Abs", ["logits"], ["loss.size"]),
        helper.make_node("Neg", ["loss.size"], ["loss.minus"]),
        helper.make_node("Exp", ["loss.minus"], ["loss.small"]),
        helper.make_node("Add", ["loss.small", "loss.one"], ["loss.more"]),
        helper.make_node("Log", ["loss.more"], ["loss.rest"]),
        helper.make_node("Add", ["loss.linear", "loss.rest"], ["loss.values"]),
    ]


def _mse_values() -> Nodes:
    return [
        helper.make_node("Sub", ["logits", "y"], ["loss.off"]),
        helper.make_node("Mul", ["loss.off", "loss.off"], ["loss.values"]),
    ]
