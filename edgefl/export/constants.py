"""Large constants that follow a rule, replaced by the operators that make them; ONNX Runtime makes them once, on loading.

A graph for a board is a few kilobytes. Exporters compute everything that does not depend on an input and write the result into
the graph: the positions of all pooling windows, say, are megabytes. What is replaced: equal elements; integers that grow by one
step along each axis; and a few ones among zeros.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

LARGE = 32
"""Elements from which on a constant is looked at."""
SPARSE = 8
"""Elements to a one from which on a constant of zeros and ones is kept as the places of its ones."""

Array = npt.NDArray[Any]
Made = tuple[list[onnx.NodeProto], dict[str, object]]
"""Nodes that make a constant, and the int64 constants that they read, by name."""


def expand_regular(graph: onnx.GraphProto) -> None:
    """Replace the regular ones among a graph's large constants, in place."""
    makers: list[onnx.NodeProto] = []
    for tensor in list(graph.initializer):
        if math.prod(tensor.dims) < LARGE:
            continue
        made, constants = _made(tensor.name, numpy_helper.to_array(tensor))
        if made:
            graph.initializer.remove(tensor)
            graph.initializer.extend(numpy_helper.from_array(np.array(v, dtype=np.int64), name) for name, v in constants.items())
            makers.extend(made)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in (*makers, *graph.node)]
    del graph.node[:]
    graph.node.extend(nodes)


def _made(name: str, values: Array) -> Made:
    if np.all(values == values.flat[0]):
        node = helper.make_node("ConstantOfShape", [f"{name}.shape"], [name], value=_element(values, values.flat[0]))
        return [node], {f"{name}.shape": values.shape}
    if values.dtype == np.int64 and _is_lattice(values):
        return _lattice(name, values)
    if set(np.unique(values)) == {0, 1} and np.count_nonzero(values) * SPARSE < values.size:
        return _sparse(name, values)
    return [], {}


def _is_lattice(values: Array) -> bool:
    """Whether each axis has a step: `values[i, j, ...] = start + a * i + b * j + ...`."""
    return all(np.unique(np.diff(values, axis=axis)).size <= 1 for axis in range(values.ndim))


def _lattice(name: str, values: Array) -> Made:
    """A range for each axis, added up."""
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, object] = {f"{name}.shape": values.shape}
    total = ""
    for axis, extent in enumerate(values.shape):
        if extent == 1:
            continue
        start, step, part = 0 if total else int(values.flat[0]), int(np.diff(values, axis=axis).flat[0]), f"{name}.{axis}"
        if step == 0:  # ONNX's Range cannot stand still; broadcasting does
            continue
        constants |= {f"{part}.from": start, f"{part}.to": start + step * extent, f"{part}.by": step}
        constants[f"{part}.shape"] = [extent, *([1] * (values.ndim - 1 - axis))]
        nodes.append(helper.make_node("Range", [f"{part}.from", f"{part}.to", f"{part}.by"], [f"{part}.range"]))
        nodes.append(helper.make_node("Reshape", [f"{part}.range", f"{part}.shape"], [part]))
        if total:
            nodes.append(helper.make_node("Add", [total, part], [f"{part}.sum"]))
        total = f"{part}.sum" if total else part
    nodes.append(helper.make_node("Expand", [total, f"{name}.shape"], [name]))
    return nodes, constants


def _sparse(name: str, values: Array) -> Made:
    """Zeros, and ones at their places in the flattened tensor."""
    size, count, places, zeros, ones, flat, shape = (
        f"{name}.{part}" for part in ("size", "count", "places", "zeros", "ones", "flat", "shape")
    )
    nodes = [
        helper.make_node("ConstantOfShape", [size], [zeros], value=_element(values, 0)),
        helper.make_node("ConstantOfShape", [count], [ones], value=_element(values, 1)),
        helper.make_node("ScatterElements", [zeros, places, ones], [flat], axis=0),
        helper.make_node("Reshape", [flat, shape], [name]),
    ]
    found = np.flatnonzero(values)
    return nodes, {size: [values.size], count: [found.size], shape: values.shape, places: found}


def _element(values: Array, value: object) -> onnx.TensorProto:
    return numpy_helper.from_array(np.full(1, value, dtype=values.dtype), "value")
