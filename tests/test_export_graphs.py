"""Exported graphs: they compute what torch computes, in standard operators, in few bytes, and the same bytes each time."""

import inspect
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
from torch import nn  # noqa: E402  needs torch

from edgefl.engine.runtime import available_engines  # noqa: E402
from edgefl.errors import EngineError, ModelError  # noqa: E402
from edgefl.export.graphs import ExportedGraphs, export_graphs  # noqa: E402
from edgefl.export.models import ModelSource  # noqa: E402
from edgefl.export.verify import verify_graphs  # noqa: E402

BATCH = 6
NATIVE = pytest.mark.skipif("ort-training" not in available_engines(), reason="needs onnxruntime-training-cpu")


def source_of(shape, *layers, classes=4):
    """A model source without a file."""

    def factory(width):
        del width
        return nn.Sequential(*layers)

    return ModelSource("layers", lambda width: _reset(factory(width)), shape, classes, scalable=False)


def _reset(module):
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    return module


class Residual(nn.Module):
    """Branches, a skip connection, several activations."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm, self.head = nn.Linear(9, 9), nn.Linear(9, 9), nn.LayerNorm(9), nn.Linear(9, 4)

    def forward(self, x):
        """Logits."""
        x = x + self.b(torch.tanh(self.a(x)))
        return self.head(nn.functional.gelu(self.norm(x)) * torch.sigmoid(x))


NETWORKS = {
    "dense": ((9,), nn.Linear(9, 12), nn.ReLU(), nn.Linear(12, 4)),
    "residual": ((9,), Residual()),
    "strided-dilated": (
        (2, 13, 11),
        nn.Conv2d(2, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 6, (3, 2), dilation=(1, 2), bias=False),
        nn.AvgPool2d(2, stride=1, padding=1, ceil_mode=True, count_include_pad=False),
        nn.Flatten(),
        nn.Linear(6 * 6 * 5, 4),
    ),
    "depthwise": (
        (3, 12, 12),
        nn.Conv2d(3, 8, 3, padding="same"),
        nn.GroupNorm(2, 8),
        nn.Hardswish(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8),
        nn.Conv2d(8, 12, 1),
        nn.ReLU6(),
        nn.AvgPool2d(2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 4),
    ),
    "overlapping-pools": (
        (1, 15, 15),
        nn.Conv2d(1, 6, 3),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.Conv2d(6, 6, 3, groups=2),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.Flatten(),
        nn.Linear(6 * 3 * 3, 4),
    ),
    "one-dimensional": (
        (3, 40),
        nn.Conv1d(3, 8, 5, stride=2, dilation=2, padding=3),
        nn.MaxPool1d(3, stride=2),
        nn.Conv1d(8, 8, 3, padding=1, groups=4),
        nn.AvgPool1d(2),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    ),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_a_portable_step_computes_what_torch_computes(network):
    """Each supported layer, in a real graph on the real engine, for a full and a partly filled batch."""
    shape, *layers = NETWORKS[network]
    source = source_of(shape, *layers)
    exported = export_graphs(source, 1.0, "portable", BATCH)
    assert verify_graphs(source, 1.0, exported, engine="portable", batch=BATCH).difference < 1e-5
    for role, data in exported.graphs.items():
        model = onnx.load_from_string(data)
        assert [(o.domain, o.version <= 18) for o in model.opset_import] == [("", True)], role
        assert model.ir_version <= 10
        assert {node.domain for node in model.graph.node} == {""}
        assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
        assert {node.op_type for node in model.graph.node if node.name} <= {"Gather", "Slice"}
        assert not {t.name for t in model.graph.initializer} & {t.name for t in exported.layout.tensors}
        assert len(data) < 24_000, role


@NATIVE
@pytest.mark.parametrize("network", ["dense", "residual", "depthwise", "overlapping-pools", "strided-dilated"])
def test_training_artifacts_compute_what_torch_computes(network):
    """The same forward graph, differentiated by onnxruntime-training."""
    shape, *layers = NETWORKS[network]
    source = source_of(shape, *layers)
    exported = export_graphs(source, 1.0, "ort-training", BATCH)
    assert set(exported.graphs) == {"train", "optimizer", "checkpoint", "eval", "infer"}
    assert verify_graphs(source, 1.0, exported, engine="ort-training", batch=BATCH).difference < 1e-5


EXPORT = """
import hashlib
from edgefl.export.models import load_factory
from edgefl.export.graphs import export_graphs
source = load_factory("mnist-2nn")
for engine in ("portable", "ort-training"):
    for role, data in sorted(export_graphs(source, 0.1, engine, 4).graphs.items()):
        print(engine, role, hashlib.sha256(data).hexdigest())
"""


@NATIVE
@pytest.mark.slow
def test_the_same_model_gives_the_same_bytes_in_every_process():
    """A second push of an unchanged model has nothing to send."""
    runs = [
        subprocess.run([sys.executable, "-c", EXPORT], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed})
        for seed in ("1", "2")
    ]
    assert runs[0].stdout == runs[1].stdout
    assert len(runs[0].stdout.splitlines()) == 8
    assert runs[0].stderr == "", "exporting is silent"


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ((nn.Linear(9, 9), nn.Dropout(0.5), nn.Linear(9, 4)), "draws random numbers.*'1'.*Remove dropout"),
        ((nn.Unflatten(1, (1, 9)), nn.ConvTranspose1d(1, 1, 3), nn.Flatten(), nn.Linear(11, 4)), "transposed convolution"),
        ((nn.Linear(9, 4), nn.Unflatten(1, (1, 2, 2)), nn.AdaptiveMaxPool2d(2), nn.Flatten()), "aten.adaptive_max_pool2d.*'2'"),
    ],
    ids=["dropout", "transposed", "adaptive-max-pool"],
)
def test_what_cannot_be_exported_is_named(layers, words):
    """The operator and its layer are named, and what to put in its place."""
    with pytest.raises(ModelError, match=f"(?s){words}"):
        export_graphs(source_of((9,), *layers), 1.0, "portable", BATCH)


class FixedRows(nn.Module):
    """Takes three rows and no others."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(9, 4)

    def forward(self, x):
        """Logits."""
        return self.head(x.reshape(3, 9))


def test_a_model_for_one_batch_size_is_refused():
    """The forward graphs take any number of rows; a model that does not is no use for them."""
    with pytest.raises(ModelError, match="cannot be exported"):
        export_graphs(source_of((9,), FixedRows()), 1.0, "portable", BATCH)


@pytest.mark.parametrize(("engine", "batch", "words"), [("tflite", 4, "no engine is called"), ("portable", 0, "needs rows")])
def test_wrong_arguments_are_refused(engine, batch, words):
    """Before anything is traced."""
    with pytest.raises(ModelError, match=words):
        export_graphs(source_of((9,), nn.Linear(9, 4)), 1.0, engine, batch)


def test_verification_finds_a_graph_that_computes_something_else():
    """A graph of the right shapes and wrong mathematics does not pass."""
    right, wrong = (source_of((9,), nn.Linear(9, 5), activation, nn.Linear(5, 4)) for activation in (nn.ReLU(), nn.Tanh()))
    exported = export_graphs(right, 1.0, "portable", BATCH)
    other = export_graphs(wrong, 1.0, "portable", BATCH)
    mixed = ExportedGraphs(exported.layout, {**exported.graphs, "train": other.graphs["train"]})
    with pytest.raises(ModelError, match=r"does not compute what torch computes.*differences up to 0.0001.*(loss|parameters)"):
        verify_graphs(right, 1.0, mixed, engine="portable", batch=BATCH)
    with pytest.raises(EngineError, match=r"lacks its 'optimizer' file|ONNX Runtime cannot train"):
        verify_graphs(right, 1.0, exported, engine="ort-training", batch=BATCH)


def test_the_exporter_reads_its_translations_once(monkeypatch):
    """After the first export, none reads the source of torch's translations again: a third of the time of a small model."""
    source = source_of((9,), nn.Linear(9, 4))
    first = export_graphs(source, 1.0, "portable", BATCH)
    monkeypatch.setattr(inspect, "getsource", lambda _: pytest.fail("a translation was read again"))
    assert export_graphs(source, 1.0, "portable", BATCH) == first
