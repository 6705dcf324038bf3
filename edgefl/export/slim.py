"""Makes an exported graph small and equal from run to run.

What an exporter adds for people (node names, metadata, doc strings, shapes of inner values) is most of a small graph's bytes
and differs between machines. Inner values get short names in order of appearance; equal constants are kept once; large
regular constants become operators (`constants`); and the graph is rewritten into a faster one (`fusion`).
"""

from collections.abc import Callable, MutableSequence, Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from edgefl.export.constants import expand_regular
from edgefl.export.fusion import fuse, known_shapes

IR_VERSION = 9
"""Read by onnxruntime 1.14 and later; onnxruntime-training 1.19.2, the last, reads at most 10."""
NAMED = frozenset({"Gather", "Slice"})
"""ONNX Runtime 1.19 merges several of one tensor into a Split, named after one of them: without names, two Splits collide."""


def slim(model: onnx.ModelProto) -> bytes:
    """The model's bytes, without what does not take part in the computation. The model is changed in place.

    Input, output names and (for ONNX Runtime's training API) initializer names that are also inputs are kept.
    """
    graph = model.graph
    _lift_constants(graph)
    fuse(graph, known_shapes(model))
    expand_regular(graph)
    _merge_constants(graph)
    _merge_nodes(graph)
    _rename(graph)
    for number, node in enumerate(graph.node):
        for text in ("name", "doc_string"):
            node.ClearField(text)
        if node.op_type in NAMED:
            node.name = f"n{number}"
        del node.metadata_props[:]
    for value in (*graph.input, *graph.output):
        value.ClearField("doc_string")
        del value.metadata_props[:]
    for tensor in graph.initializer:
        tensor.ClearField("doc_string")
        del tensor.metadata_props[:]
    del graph.value_info[:]
    del graph.metadata_props[:]
    graph.name = "g"
    graph.ClearField("doc_string")
    used = {node.domain for node in graph.node}
    versions = sorted((o.domain, o.version) for o in model.opset_import if o.domain in used or o.domain == "")
    del model.opset_import[:], model.metadata_props[:], model.functions[:]
    model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in versions)
    for text in ("producer_name", "producer_version", "doc_string", "domain", "model_version"):
        model.ClearField(text)
    model.ir_version = IR_VERSION
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _lift_constants(graph: onnx.GraphProto) -> None:
    """Turn Constant nodes into initializers."""
    nodes = []
    for node in graph.node:
        if node.op_type == "Constant" and len(node.attribute) == 1:
            value = helper.get_attribute_value(node.attribute[0])
            tensor = value if isinstance(value, onnx.TensorProto) else numpy_helper.from_array(_array(value))
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
        else:
            nodes.append(node)
    _set_nodes(graph, nodes)


def _array(value: object) -> npt.NDArray[np.generic]:
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _merge_constants(graph: onnx.GraphProto) -> None:
    """Keep one of several equal initializers."""
    first: dict[bytes, str] = {}
    same: dict[str, str] = {}
    for tensor in list(graph.initializer):
        content = numpy_helper.to_array(tensor)
        key = b"|".join((str(content.dtype).encode(), str(content.shape).encode(), content.tobytes()))
        if first.setdefault(key, tensor.name) != tensor.name:
            same[tensor.name] = first[key]
            graph.initializer.remove(tensor)
    for node in graph.node:
        _replace(node.input, lambda name: same.get(name, name))


def _merge_nodes(graph: onnx.GraphProto) -> None:
    """Keep one of several nodes that compute the same from the same, and drop what nothing reads."""
    results = {value.name for value in graph.output}
    first: dict[tuple[object, ...], onnx.NodeProto] = {}
    same: dict[str, str] = {}
    nodes = []
    for node in graph.node:
        _replace(node.input, lambda name: same.get(name, name))
        attributes = tuple(sorted(a.SerializeToString(deterministic=True) for a in node.attribute))
        twin = first.setdefault((node.domain, node.op_type, tuple(node.input), attributes, len(node.output)), node)
        if twin is node or results & set(node.output):
            nodes.append(node)
        else:
            same.update(zip(node.output, twin.output, strict=True))
    needed = set(results)
    kept = []
    for node in reversed(nodes):
        if needed & set(node.output):
            needed |= set(node.input)
            kept.append(node)
    _set_nodes(graph, kept[::-1])
    constants = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(constants)


def _set_nodes(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _rename(graph: onnx.GraphProto) -> None:
    """Short names for inner values, in order of appearance."""
    kept = {value.name for value in (*graph.input, *graph.output)} | {""}
    names = {name: name for name in kept}
    numbers = (f"_{i}" for i in range(1 << 30))

    def short(name: str) -> str:
        if name not in names:
            names[name] = next(n for n in numbers if n not in kept)
        return names[name]

    for node in graph.node:
        _replace(node.input, short)
        _replace(node.output, short)
    for tensor in graph.initializer:
        tensor.name = short(tensor.name)
    ordered = sorted(graph.initializer, key=lambda tensor: (len(tensor.name), tensor.name))
    del graph.initializer[:]
    graph.initializer.extend(ordered)


def _replace(names: MutableSequence[str], by: Callable[[str], str]) -> None:
    for place, name in enumerate(names):
        names[place] = by(name)
