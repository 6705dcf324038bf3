"""The losses, each with its gradient written down, for the training step; and as ONNX nodes, for evaluation.

Model: `loss(outputs, y, w) -> (mean loss, gradient by outputs)`. `outputs` is `(n, k)`; `w` is `(n,)`, 1 for a real row and 0 for
padding, at least one 1. Means are over the real rows and, for `bce` and `mse`, over the outputs, as torch's own losses take them.
A gradient that is given keeps its part of the graph small.

Of a model with exits `outputs` is `(n, exits, classes)`, and any loss of labels is the mean over its exits.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor
from torch.nn import functional

from edgefl.errors import ModelError
from edgefl.recipe import LABELLED, Loss, Recipe

LossAndGradient = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def cross_entropy(logits: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax cross-entropy; `y` int64 `(n,)`, labels."""
    truth = (y[:, None] == torch.arange(logits.shape[1])[None, :]).to(logits.dtype)
    logs = torch.log_softmax(logits, 1)
    share = (w / w.sum())[:, None]
    return -(truth * logs * share).sum(), (logs.exp() - truth) * share


def masked_cross_entropy(logits: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax cross-entropy over the classes that the real rows have; `y` int64 `(n,)`, labels."""
    truth = (y[:, None] == torch.arange(logits.shape[1])[None, :]).to(logits.dtype)
    absent = (truth * w[:, None]).sum(0) == 0.0
    return cross_entropy(torch.where(absent[None, :], torch.full_like(logits, MASKED), logits), y, w)


def _masked_in_torch(logits: Tensor, y: Tensor) -> Tensor:
    absent = torch.ones(logits.shape[1], dtype=torch.bool).index_fill(0, y, value=False)
    return functional.cross_entropy(logits.masked_fill(absent, -torch.inf), y)


def bce(logits: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy of logits; `y` float32 `(n, k)` in [0, 1]. In the form that does not overflow."""
    share = (w / (w.sum() * logits.shape[1]))[:, None]
    value = logits.relu() - logits * y + (1.0 + (-logits.abs()).exp()).log()
    return (value * share).sum(), (logits.sigmoid() - y) * share


def mse(outputs: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Squared error; `y` float32 `(n, k)`."""
    share = (w / (w.sum() * outputs.shape[1]))[:, None]
    off = outputs - y
    return (off * off * share).sum(), off * share * 2.0


def self_distillation(logits: Tensor, y: Tensor, w: Tensor, mutual: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each exit, and how far it is from what each of the others believes; both are means.

    With `p_i` the probabilities of exit i, and `q_i` the mean of those of the other exits, whose own gradient is left out, its
    loss is `-log p_i[y] + mean over j of KL(p_j || p_i)`. Over all exits the second terms sum up to
    `sum over i of (p_i - q_i) log p_i`; the gradient by the logits of exit i is `(p_i - truth) + (p_i - q_i)`.

    Args:
        logits: `(n, exits, classes)`.
        y: int64 `(n,)`, labels.
        w: `(n,)`.
        mutual: `()`, weight of the second terms; None for 1.
    """
    exits, classes = logits.shape[1:]
    truth = (y[:, None] == torch.arange(classes)[None, :]).to(logits.dtype)[:, None]
    share = (w / (w.sum() * exits))[:, None, None]
    logs = torch.log_softmax(logits, 2)
    p = logs.exp()
    others = (p.sum(1, keepdim=True) - p) / (exits - 1) if exits > 1 else p
    away = p - others if mutual is None else (p - others) * mutual
    return ((away - truth) * logs * share).sum(), (p - truth + away) * share


def _self_distillation_in_torch(logits: Tensor, y: Tensor, mutual: float = 1.0) -> Tensor:
    exits = logits.unbind(1) if logits.dim() == 3 else (logits,)
    loss = torch.stack([functional.cross_entropy(one, y) for one in exits]).mean()
    logs = [functional.log_softmax(one, 1) for one in exits]
    taught = [
        functional.kl_div(own, other.detach(), reduction="batchmean", log_target=True)
        for i, own in enumerate(logs)
        for j, other in enumerate(logs)
        if i != j
    ]
    return loss + mutual * torch.stack(taught).mean() if taught else loss


MASKED = -1e30
"""Logit of a class that is left out: its probability is 0, and so is its gradient. Infinite ones would make NaN of 0."""
WITH_GRADIENT: Mapping[str, LossAndGradient] = {
    "cross-entropy": cross_entropy,
    "bce": bce,
    "mse": mse,
    "masked-cross-entropy": masked_cross_entropy,
    "self-distillation": self_distillation,
}
IN_TORCH: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross-entropy": functional.cross_entropy,
    "bce": functional.binary_cross_entropy_with_logits,
    "mse": functional.mse_loss,
    "masked-cross-entropy": _masked_in_torch,
    "self-distillation": _self_distillation_in_torch,
}
"""The same losses as torch defines them: what every export is compared with."""
EVALUATED: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {**IN_TORCH, **dict.fromkeys(LABELLED, functional.cross_entropy)}
"""The losses that models are judged by."""


def loss_and_gradient(loss: Loss, outputs: Tensor, y: Tensor, w: Tensor, mutual: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean loss and its gradient by the outputs, which are `(n, k)` or, of a model with exits, `(n, exits, classes)`.

    `mutual` is the weight of what exits learn of each other, for `self-distillation`; None for 1.
    """
    if loss == "self-distillation":
        return self_distillation(outputs, y, w, mutual)
    if outputs.dim() < 3:
        return WITH_GRADIENT[loss](outputs, y, w)
    n, exits, classes = outputs.shape
    value, gradient = WITH_GRADIENT[loss](outputs.reshape(n * exits, classes), _each(y, exits), _each(w, exits))
    return value, gradient.reshape(n, exits, classes)


def loss_in_torch(loss: Loss, outputs: Tensor, y: Tensor, mutual: float = 1.0) -> Tensor:
    """The same as torch defines it, without padding, to be differentiated."""
    if loss == "self-distillation":
        return _self_distillation_in_torch(outputs, y, mutual)
    if outputs.dim() < 3:
        return IN_TORCH[loss](outputs, y)
    return IN_TORCH[loss](outputs.flatten(0, 1), _each(y, outputs.shape[1]))


def _each(values: Tensor, exits: int) -> Tensor:
    """`(n,)`, each value once for each exit of its row."""
    return values[:, None].expand(len(values), exits).reshape(-1)


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
    declare_targets(graph, recipe)
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
    declare_targets(graph, recipe)
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("loss", TensorProto.FLOAT, []))
    return model


def declare_targets(graph: onnx.GraphProto, recipe: Recipe) -> None:
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
