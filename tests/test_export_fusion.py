"""Rewritten graphs and constants compute what they computed before, on the real runtime."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402  needs onnx

from edgefl.engine.runtime import onnxruntime  # noqa: E402
from edgefl.export.constants import expand_regular  # noqa: E402
from edgefl.export.slim import slim  # noqa: E402

RNG = np.random.default_rng(0)
node = helper.make_node


def value(*shape):
    """Random float32 values."""
    return RNG.standard_normal(shape).astype(np.float32)


def model_of(nodes, inputs, outputs, constants):
    """A graph of these nodes; outputs by name and rank."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, given.shape) for name, given in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.array(constant), name) for name, constant in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def run(data, inputs):
    """All outputs of a graph."""
    return onnxruntime().InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, inputs)


def slimmed(nodes, inputs, outputs, **constants):
    """The kinds of nodes after slimming, having checked that the outputs stayed the same."""
    model = model_of(nodes, inputs, outputs, constants)
    before = run(model.SerializeToString(), inputs)
    data = slim(model)
    for a, b in zip(run(data, inputs), before, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    return sorted(made.op_type for made in onnx.load_from_string(data).graph.node)


@pytest.mark.parametrize("rate_first", [True, False])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(4, 9, 3), (9, 2, 8)])
def test_the_update_of_a_dense_layer_is_one_product(rate_first, rows, inputs, outputs):
    """The gradient of its weight, transposed twice as torch does it, goes straight into the new weight."""
    given = {"x": value(rows, inputs), "grad": value(rows, outputs), "weight": value(outputs, inputs), "lr": value()}
    nodes = [
        node("Transpose", ["grad"], ["t1"], perm=[1, 0]),
        node("MatMul", ["t1", "x"], ["t2"]),
        node("Transpose", ["t2"], ["t3"], perm=[1, 0]),
        node("Transpose", ["t3"], ["t4"], perm=[1, 0]),
        node("Mul", ["lr", "t4"] if rate_first else ["t4", "lr"], ["t5"]),
        node("Sub", ["weight", "t5"], ["new"]),
    ]
    assert slimmed(nodes, given, ["new"]) == ["Gemm", "Mul"]


def test_a_gradient_that_is_read_elsewhere_is_computed_once():
    """An optimiser with momentum needs the gradient itself."""
    given = {"x": value(4, 9), "grad": value(4, 3), "weight": value(3, 9), "lr": value()}
    nodes = [
        node("Transpose", ["grad"], ["t1"], perm=[1, 0]),
        node("MatMul", ["t1", "x"], ["t2"]),
        node("Mul", ["lr", "t2"], ["t3"]),
        node("Sub", ["weight", "t3"], ["new"]),
        node("Neg", ["t2"], ["other"]),
    ]
    assert slimmed(nodes, given, ["new", "other"]) == ["Gemm", "Mul", "Neg", "Sub"]


def test_products_read_transposed_operands_as_they_lie():
    """Both operands of a product of matrices; a product of more axes stays as it is."""
    given = {"a": value(5, 4), "b": value(6, 5), "c": value(2, 4, 5)}
    nodes = [
        node("Transpose", ["a"], ["ta"], perm=[1, 0]),
        node("Transpose", ["b"], ["tb"], perm=[1, 0]),
        node("MatMul", ["ta", "tb"], ["y"]),
        node("MatMul", ["c", "tb"], ["z"]),
    ]
    assert slimmed(nodes, given, ["y", "z"]) == ["Gemm", "MatMul", "Transpose"]


def test_chains_of_reshapes_and_transpositions_become_one_or_none():
    """What comes back to where it began is not computed; an output keeps its name."""
    given = {"x": value(2, 3, 4)}
    nodes = [
        node("Reshape", ["x", "flat"], ["a"]),
        node("Unsqueeze", ["a", "first"], ["b"]),
        node("Squeeze", ["b", "first"], ["c"]),
        node("Reshape", ["c", "shape"], ["back"]),
        node("Transpose", ["back"], ["d"], perm=[1, 2, 0]),
        node("Transpose", ["d"], ["same"], perm=[2, 0, 1]),
        node("Transpose", ["d"], ["turned"], perm=[0, 2, 1]),
        node("Relu", ["same"], ["y"]),
    ]
    constants = {"flat": [-1, 4], "first": [0], "shape": [2, 3, 4]}
    assert slimmed(nodes, given, ["back", "turned", "y"], **constants) == ["Identity", "Relu", "Transpose"]


def test_a_scalar_is_multiplied_in_before_axes_of_length_one_appear():
    """ONNX Runtime's broadcasting takes one step per element on such axes."""
    given = {"x": value(5, 6), "lr": value()}
    nodes = [node("Reshape", ["x", "shape"], ["a"]), node("Mul", ["a", "lr"], ["y"])]
    model = model_of(nodes, given, ["y"], {"shape": [5, 6, 1, 1]})
    before = run(model.SerializeToString(), given)[0]
    data = slim(model)
    assert [made.op_type for made in onnx.load_from_string(data).graph.node] == ["Mul", "Reshape"]
    np.testing.assert_array_equal(run(data, given)[0], before)


def expanded(array):
    """A constant's bytes in a graph before and after, having checked that its values stayed the same."""
    like = TensorProto.INT64 if array.dtype == np.int64 else TensorProto.FLOAT
    graph = helper.make_graph(
        [node("Identity", ["c"], ["y"])],
        "g",
        [],
        [helper.make_tensor_value_info("y", like, array.shape)],
        [numpy_helper.from_array(array, "c")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    before = model.ByteSize()
    expand_regular(model.graph)
    np.testing.assert_array_equal(run(model.SerializeToString(), {})[0], array)
    return before, model.ByteSize()


@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    steps=st.lists(st.integers(-9, 9), min_size=3, max_size=3),
    start=st.integers(-50, 50),
)
@settings(max_examples=40, deadline=None)
def test_integers_in_equal_steps_are_made_by_operators(shape, steps, start):
    """Along any number of axes, forwards, backwards and standing still."""
    axes = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    expanded(start + sum(step * axis for step, axis in zip(steps, axes, strict=False)).astype(np.int64))


def test_large_regular_constants_take_few_bytes():
    """Positions of windows, equal elements, and a few ones among zeros; anything else stays as it is."""
    band = np.zeros((9, 2401), dtype=np.float32)
    band[np.arange(9), np.arange(9) * 7] = 1
    positions = np.arange(0, 64 * 784, 56, dtype=np.int64)[:, None] + np.arange(0, 28, 2)
    for array in (band, positions, np.full((50, 50), 0.25, dtype=np.float32)):
        before, after = expanded(array)
        assert after < 1000 < before
    irregular = value(50, 50)
    assert len(set(expanded(irregular))) == 1
