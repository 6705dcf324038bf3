"""Rewrites of a finished graph that a trace cannot express: fewer passes and fewer copies for the same result.

* A matrix product with a transposed operand becomes one Gemm, which reads the operand as it lies.
* `parameter - rate * gradient`, where the gradient is a matrix product, becomes one Gemm with the parameter as its addend: the
  gradient of a dense layer, the largest tensor of many steps, is never written. The rate scales the smaller operand.
* A product with a scalar is taken before a tensor gets axes of length 1, on which ONNX Runtime's broadcasting is slow.
* Chains of reshapes and of transpositions become one, or none.

Only values whose shapes are known take part. Nodes that nothing reads any more are left for `slim` to remove.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference

Nodes = list[onnx.NodeProto]
Shape = tuple[int, ...]


def fuse(graph: onnx.GraphProto, shapes: Mapping[str, Shape]) -> None:
    """Rewrite a graph in place.

    Args:
        graph: its nodes in an order in which values are made before they are read.
        shapes: of the values that have known ones.
    """
    rewriting = _Rewriting(graph, shapes)
    nodes = [made for node in graph.node for made in rewriting.rewritten(onnx.NodeProto.FromString(node.SerializeToString()))]
    del graph.node[:]
    graph.node.extend(nodes)


def known_shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    """Shapes by name of the values that have the same one in every run."""
    graph = shape_inference.infer_shapes(model).graph
    shapes: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(extent.HasField("dim_value") for extent in kind.shape.dim):
            shapes[value.name] = tuple(extent.dim_value for extent in kind.shape.dim)
    return shapes


class _Rewriting:
    """One pass over the nodes; each is replaced by what its operator's rule says."""

    def __init__(self, graph: onnx.GraphProto, shapes: Mapping[str, Shape]) -> None:
        self._graph = graph
        self._shapes = dict(shapes)
        self._results = {value.name for value in graph.output}
        self._readers = Counter(name for node in graph.node for name in node.input)
        self._makers: dict[str, onnx.NodeProto] = {}
        self._same: dict[str, str] = {}
        self._rules: Mapping[str, Callable[[onnx.NodeProto], Nodes]] = {
            "Reshape": self._reshape,
            "Squeeze": self._reshape,
            "Unsqueeze": self._reshape,
            "Transpose": self._transpose,
            "MatMul": self._product,
            "Gemm": self._product,
            "Mul": self._scaled,
            "Sub": self._update,
        }

    def rewritten(self, node: onnx.NodeProto) -> Nodes:
        """What stands in the node's place: nothing, if its value exists already."""
        for place, name in enumerate(node.input):
            node.input[place] = self._same.get(name, name)
        rule = self._rules.get(node.op_type)
        nodes = [node] if rule is None or node.output[0] not in self._shapes else rule(node)
        self._makers.update((name, made) for made in nodes for name in made.output)
        return nodes

    def _reshape(self, node: onnx.NodeProto) -> Nodes:
        source, shape = node.input[0], self._shapes[node.output[0]]
        while (before := self._made_by(source, "Reshape")) is not None:
            source = before.input[0]
        return self._named(node, source) if self._shapes.get(source) == shape else [self._reshaped(source, node.output[0])]

    def _transpose(self, node: onnx.NodeProto) -> Nodes:
        order = _order(node, len(self._shapes[node.output[0]]))
        before = self._made_by(node.input[0], "Transpose")
        if before is not None:
            inner = _order(before, len(order))
            order = [inner[axis] for axis in order]
            node = helper.make_node("Transpose", [before.input[0]], [node.output[0]], perm=order)
        return self._named(node, node.input[0]) if order == sorted(order) else [node]

    def _product(self, node: onnx.NodeProto) -> Nodes:
        if any(len(self._shapes.get(name, ())) != 2 for name in node.input[:2]):
            return [node]
        attributes, transposed = _attributes(node), False
        for place, flag in enumerate(("transA", "transB")):
            before = self._made_by(node.input[place], "Transpose")
            if before is not None:
                node.input[place] = before.input[0]
                attributes[flag] = 1 - attributes.get(flag, 0)
                transposed = True
        return [helper.make_node("Gemm", node.input, node.output, **attributes)] if transposed else [node]

    def _scaled(self, node: onnx.NodeProto) -> Nodes:
        scalar, value = self._scalar_first(node)
        before = self._made_by(value, "Reshape")
        if not scalar or before is None or before.input[0] not in self._shapes:
            return [node]
        inner = f"{node.output[0]}.scaled"
        return [helper.make_node("Mul", [scalar, before.input[0]], [inner]), self._reshaped(inner, node.output[0])]

    def _update(self, node: onnx.NodeProto) -> Nodes:
        parameter, change = node.input
        scaling = self._made_by(change, "Mul")
        rate, gradient = self._scalar_first(scaling) if scaling is not None else ("", "")
        product = self._made_by(gradient, "Gemm", "MatMul")
        if not rate or product is None or len(product.input) != 2 or max(self._readers[change], self._readers[gradient]) > 1:
            return [node]
        shape = self._shapes[node.output[0]]
        if len(shape) != 2 or not shape == self._shapes.get(parameter) == self._shapes.get(gradient):
            return [node]
        operands, attributes = list(product.input), _attributes(product)
        smaller = min((0, 1), key=lambda place: math.prod(self._shapes[operands[place]]))
        scaled = f"{node.output[0]}.scaled"
        scale = helper.make_node("Mul", [rate, operands[smaller]], [scaled])
        operands[smaller] = scaled
        attributes |= {"alpha": -attributes.get("alpha", 1.0), "beta": 1.0}
        return [scale, helper.make_node("Gemm", [*operands, parameter], node.output, **attributes)]

    def _made_by(self, name: str, *operators: str) -> onnx.NodeProto | None:
        maker = self._makers.get(name)
        return maker if maker is not None and maker.op_type in operators else None

    def _scalar_first(self, node: onnx.NodeProto) -> tuple[str, str]:
        """The operands of a product, the scalar first; an empty name if none is one."""
        first, second = node.input
        for scalar, other in ((first, second), (second, first)):
            if self._shapes.get(scalar) in {(), (1,)}:
                return scalar, other
        return "", second

    def _named(self, node: onnx.NodeProto, source: str) -> Nodes:
        """Nothing, because the node's value is this one; unless the graph gives it out under its name."""
        result = node.output[0]
        if result in self._results:
            return [helper.make_node("Identity", [source], [result])]
        self._same[result] = source
        self._readers[source] += self._readers[result] - 1
        return []

    def _reshaped(self, source: str, result: str) -> onnx.NodeProto:
        shape = np.array(self._shapes[result], dtype=np.int64)
        self._graph.initializer.append(numpy_helper.from_array(shape, f"{result}.shape"))
        return helper.make_node("Reshape", [source, f"{result}.shape"], [result])


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _order(node: onnx.NodeProto, rank: int) -> Sequence[int]:
    return next((list(a.ints) for a in node.attribute if a.name == "perm"), list(range(rank))[::-1])
