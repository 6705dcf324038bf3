"""Files from outside: damaged, foreign or forbidden graphs end in an EngineError, never in a crash or a traceback."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper  # noqa: E402  needs onnx
from torch import nn  # noqa: E402  needs torch

from edgefl.engine.contract import VariantFiles  # noqa: E402
from edgefl.engine.graphfile import GraphFile, check_graph, read_graph  # noqa: E402
from edgefl.engine.open import open_engine  # noqa: E402
from edgefl.engine.runtime import available_engines  # noqa: E402
from edgefl.errors import EngineError  # noqa: E402
from edgefl.examples import Examples  # noqa: E402
from edgefl.export.graphs import export_graphs, variant_files  # noqa: E402
from edgefl.export.models import ModelSource  # noqa: E402
from edgefl.layout import Layout  # noqa: E402

NATIVE = pytest.mark.skipif("ort-training" not in available_engines(), reason="needs onnxruntime-training-cpu")
EXAMPLES = Examples(np.zeros((2, 5), dtype=np.float32), np.zeros(2, dtype=np.int64))


def tiny(width):
    """Three classes from five values."""
    del width
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))


TINY = ModelSource("tiny", tiny, (5,), 3, scalable=False)


@functools.cache
def graphs(engine):
    """The tiny model's graphs, made once."""
    return export_graphs(TINY, 1.0, engine, 4)


def files_with(tmp_path, engine="portable", layout=None, without="", **replaced):
    """The tiny model on disk, with some files replaced or left out."""
    made = variant_files(TINY, graphs(engine), engine, 4, tmp_path)
    for role, data in replaced.items():
        made.paths[role].write_bytes(data)
    paths = {role: path for role, path in made.paths.items() if role != without}
    return VariantFiles(engine, layout or made.layout, made.input_shape, made.classes, made.batch, paths)


def use(files):
    """Everything that an engine does."""
    loaded = open_engine(files, threads=1)
    loaded.set_vector(np.zeros(files.layout.size, dtype=np.float32))
    loaded.train(EXAMPLES, epochs=1, learning_rate=0.1, rng=np.random.default_rng(0))
    loaded.evaluate(EXAMPLES)
    loaded.predict(EXAMPLES.x)


def _read(path):
    """What the reader makes of a file: a description or an error."""
    try:
        return check_graph(read_graph(path))
    except EngineError as error:
        return error


def model(nodes, *, functions=(), initializers=(), opset=18):
    """An ONNX file of these nodes."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    graph = helper.make_graph(nodes, "g", [value], [value], initializer=list(initializers))
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9, functions=list(functions))
    return made.SerializeToString()


def test_inputs_and_operators_are_read_without_onnx(tmp_path):
    """The small reader sees what the onnx package sees."""
    for role, data in graphs("portable").graphs.items():
        (tmp_path / role).write_bytes(data)
        expected = onnx.load_from_string(data).graph
        found = read_graph(tmp_path / role)
        assert found.inputs == tuple(value.name for value in expected.input)
        assert found.operators == {(node.domain, node.op_type) for node in expected.node}


@pytest.mark.parametrize("engine", available_engines())
@pytest.mark.parametrize("role", ["train", "eval", "infer"])
@pytest.mark.parametrize("data", [b"", b"\x00", b"not a graph", b"\x3a\xff\xff\xff\xff\x7f", b"\xff" * 40], ids=range(5))
def test_a_file_that_is_no_graph_is_refused(tmp_path, engine, role, data):
    """Whatever it holds, and whichever graph it was to be."""
    with pytest.raises(EngineError, match=f"graph {role} is damaged"):
        use(files_with(tmp_path, engine, **{role: data}))


@given(st.integers(0, 2**32), st.integers(1, 12), st.booleans())
@settings(max_examples=150, deadline=None)
def test_a_damaged_graph_is_read_or_refused(tmp_path_factory, seed, flips, cut):
    """Flipped bits and cut ends give a `GraphFile` or an `EngineError`, nothing else."""
    rng = np.random.default_rng(seed)
    data = bytearray(graphs("portable").graphs["train"])
    for place in rng.integers(0, len(data), flips):
        data[place] ^= 1 << int(rng.integers(8))
    if cut:
        del data[int(rng.integers(len(data))) :]
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(data)
    outcome = _read(path)
    assert isinstance(outcome, GraphFile) or outcome.found


@given(st.binary(max_size=300))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_read_or_refused(tmp_path_factory, data):
    """The reader ends on every input; only a file with a graph field (tag 0x3a) can be taken for a graph."""
    path = tmp_path_factory.getbasetemp() / "bytes"
    path.write_bytes(data)
    assert isinstance(_read(path), EngineError) or b"\x3a" in data


BRANCH = helper.make_graph([], "then", [], [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])])
EXTERNAL = TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
EXTERNAL.external_data.add(key="location", value="/etc/passwd")
FUNCTION = helper.make_function("d", "F", ["x"], ["y"], [helper.make_node("Relu", ["x"], ["y"])], [helper.make_opsetid("", 18)])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (model([helper.make_node("RandomNormal", [], ["y"], shape=[2])]), "found RandomNormal"),
        (model([helper.make_node("Relu", ["x"], ["y"], domain="ai.evil")]), "found ai.evil.Relu"),
        (model([helper.make_node("SGDOptimizerV2", ["x"], ["y"], domain="com.microsoft")]), "found com.microsoft.SGDOptimizerV2"),
        (model([helper.make_node("If", ["x"], ["y"], then_branch=BRANCH, else_branch=BRANCH)]), "sub-graph"),
        (model([helper.make_node("Add", ["x", "c"], ["y"])], initializers=[EXTERNAL]), "a tensor in another file"),
        (model([helper.make_node("Constant", [], ["y"], value=EXTERNAL)]), "a tensor in another file"),
        (model([helper.make_node("F", ["x"], ["y"], domain="d")], functions=[FUNCTION]), "functions"),
    ],
    ids=["random", "domain", "training-only", "branch", "external", "external-constant", "function"],
)
def test_a_graph_that_could_do_more_than_compute_is_refused(tmp_path, data, words):
    """Before ONNX Runtime sees it."""
    with pytest.raises(EngineError, match=words):
        use(files_with(tmp_path, train=data))


def test_a_valid_graph_of_another_model_is_refused(tmp_path):
    """Names and order of the inputs must be the layout's."""
    with pytest.raises(EngineError, match="does not belong to this layout"):
        use(files_with(tmp_path, train=model([helper.make_node("Relu", ["x"], ["y"])])))
    with pytest.raises(EngineError, match="does not belong to this layout"):
        use(files_with(tmp_path, infer=model([helper.make_node("Relu", ["x"], ["y"])])))


def test_a_graph_with_a_newer_format_is_refused_in_words(tmp_path):
    """What ONNX Runtime raises on loading becomes an EngineError."""
    newer = onnx.load_from_string(graphs("portable").graphs["train"])
    newer.opset_import[0].version = 99
    with pytest.raises(EngineError, match="graph train does not load"):
        use(files_with(tmp_path, train=newer.SerializeToString()))


@pytest.mark.parametrize("engine", available_engines())
def test_a_layout_in_another_order_is_refused(tmp_path, engine):
    """A vector is never spread over the wrong tensors, even if the sizes add up."""
    tensors = graphs(engine).layout.tensors
    with pytest.raises(EngineError, match=r"does not belong to this layout|in another place"):
        use(files_with(tmp_path, engine, layout=Layout(tensors[::-1])))


@NATIVE
@pytest.mark.parametrize("role", ["train", "optimizer", "checkpoint", "eval", "infer"])
def test_a_missing_file_is_named(tmp_path, role):
    """By role, whether the manifest or the disk lacks it."""
    with pytest.raises(EngineError, match=f"lacks its '{role}' file"):
        use(files_with(tmp_path, "ort-training", without=role))
    files = files_with(tmp_path, "ort-training")
    files.paths[role].unlink()
    with pytest.raises(EngineError, match=rf"graph {role} cannot be read|do not load"):
        use(files)


@NATIVE
@pytest.mark.parametrize("data", [b"", b"\x00" * 100, b"garbage" * 50], ids=range(3))
def test_a_damaged_checkpoint_is_refused(tmp_path, data):
    """The checkpoint is no graph, so ONNX Runtime itself must refuse it."""
    with pytest.raises(EngineError, match="artifacts"):
        use(files_with(tmp_path, "ort-training", checkpoint=data))


def test_an_unknown_engine_is_refused(tmp_path):
    """A manifest from a newer server may name an engine that this device does not have."""
    made = files_with(tmp_path)
    with pytest.raises(EngineError, match="no engine is called 'quantum'"):
        open_engine(VariantFiles("quantum", made.layout, (5,), 3, 4, made.paths), threads=1)
