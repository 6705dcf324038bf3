"""What torch's exporter is kept from doing again: it changes no graph."""

from collections import OrderedDict

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from torch import nn  # noqa: E402  needs torch
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402  needs torch

from edgefl.engine.runtime import available_engines  # noqa: E402  needs torch
from edgefl.errors import ModelError  # noqa: E402  needs torch
from edgefl.export import sparing  # noqa: E402  needs torch
from edgefl.export.differentiable import differentiable  # noqa: E402  needs torch
from edgefl.export.graphs import export_graphs  # noqa: E402  needs torch
from edgefl.export.models import ModelSource  # noqa: E402  needs torch
from edgefl.export.operators import TRANSLATIONS  # noqa: E402  needs torch
from edgefl.export.program import decomposed, program_of  # noqa: E402  needs torch
from edgefl.export.tracing import Traced, to_onnx  # noqa: E402  needs torch


def network(_: float) -> nn.Module:
    """A convolution, a normalisation and a linear layer."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3))


def test_a_program_that_is_traced_once_more_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every graph, whether the exporter takes apart what it can translate as it stands, or not."""
    source, asked, look = ModelSource("plain", network, (1, 4, 4), 3, False), [], sparing._translatable
    monkeypatch.setattr(sparing, "_translatable", lambda *given: asked.append(look(*given)) or asked[-1])
    once = export_graphs(source, 1.0, "portable", 4).graphs
    assert asked
    assert all(asked)
    monkeypatch.setattr(sparing, "_translatable", lambda *_: False)
    assert export_graphs(source, 1.0, "portable", 4).graphs == once


@pytest.mark.parametrize(
    "function",
    [lambda x: x.clone().mul_(2.0), lambda x: torch.nn.functional.huber_loss(x, x + 1.0)],
    ids=["writes", "has no translation"],
)
def test_what_the_exporter_must_take_apart_is_taken_apart(function, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator that writes into its operand, and one that has no translation: torch's exporter sees to both."""
    asked, look = [], sparing._translatable
    monkeypatch.setattr(sparing, "_translatable", lambda *given: asked.append(look(*given)) or asked[-1])
    program = torch.export.export(Traced(function), (torch.ones(3),), strict=False)
    to_onnx(program, ["x"], ["y"], name="toy", layers=lambda: program.graph, simplify=False)
    assert asked == [False]


def test_axes_that_are_not_one_long_stay() -> None:
    """`squeeze` of several axes leaves the others, as in torch."""
    import onnxruntime

    assert torch.ops.aten.squeeze.dims in TRANSLATIONS
    x = torch.arange(6.0).reshape(1, 2, 1, 3)
    for dims in ((0, 1, -2), (1, 3)):
        program = torch.export.export(Traced(lambda t, dims=dims: t.squeeze(dims)), (x,), strict=False)
        graph = to_onnx(program, ["x"], ["y"], name="toy", layers=torch.fx.Graph, simplify=False)
        (y,) = onnxruntime.InferenceSession(graph.SerializeToString()).run(None, {"x": x.numpy()})
        np.testing.assert_array_equal(y, x.squeeze(dims).numpy())


@pytest.mark.parametrize("writes", [False, True])
def test_a_traced_graph_is_traced_again_only_if_it_writes(writes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program of a graph of pure operators is that graph, node by node what a second trace gives; what writes is traced."""
    traces, export = [], torch.export.export
    monkeypatch.setattr(torch.export, "export", lambda *given, **named: traces.append(given) or export(*given, **named))
    arguments = torch.ones(2, 3), torch.ones(2, 3)

    def function(x, y):
        return (x.clone().add_(y) if writes else x + y).relu(), x

    def operators(program):
        return [(node.op, str(node.target)) for node in program.graph.nodes if node.op == "call_function"]

    program = program_of(make_fx(function, tracing_mode="fake")(*arguments), arguments)
    assert len(traces) == writes
    again = export(Traced(make_fx(function, tracing_mode="fake")(*arguments)), arguments, strict=False)
    assert operators(program) == operators(again)
    for found, expected in zip(program.module()(*arguments), function(*arguments), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(2, 4, 3), (2, 2, 5, 5)),
        (nn.GroupNorm(2, 4), (2, 4, 5)),
        (nn.GELU(), (2, 3)),
        (nn.Softmax(1), (2, 3)),
        (nn.MaxPool2d(2), (2, 2, 4, 4)),
        (nn.Upsample(scale_factor=2), (2, 2, 4, 4)),
    ],
)
def test_taking_apart_in_one_trace_gives_what_two_give(layer: nn.Module, shape: tuple[int, ...]) -> None:
    """The same operators in the same order, with any number of rows, and the values of the layer."""
    arguments, rows = (torch.rand(shape),), ({0: torch.export.Dim("rows", min=1)},)

    def traced():
        return torch.export.export(Traced(layer.forward), arguments, dynamic_shapes=(rows,), strict=False)

    once, twice = decomposed(traced(), differentiable()), traced().run_decompositions(differentiable())
    found, expected = ([str(n.target) for n in one.graph.nodes if n.op == "call_function"] for one in (once, twice))
    assert found == expected
    for inputs in (arguments[0], torch.rand(5, *shape[1:])):
        torch.testing.assert_close(once.module()(inputs), layer(inputs))


def test_what_is_traced_again_is_the_graph_as_it_stands() -> None:
    """A graph that was changed after it had been traced, and writes, comes out changed."""
    arguments = (torch.ones(2, 3),)
    traced = make_fx(lambda x: (x.clone().add_(x).relu(),), tracing_mode="fake")(*arguments)
    for node in traced.graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default):
        node.target = torch.ops.aten.neg.default
    assert torch.equal(program_of(traced, arguments).module()(*arguments)[0], -2 * torch.ones(2, 3))


@pytest.mark.parametrize("engine", available_engines())
def test_dropout_is_refused_by_its_layer_in_every_engine(engine: str) -> None:
    """Neither engine's graphs know the layers: the trace that does is made for the native one, or when an error asks for it."""
    layers = OrderedDict(first=nn.Linear(6, 6), strange=nn.Dropout(0.5), last=nn.Linear(6, 3))
    source = ModelSource("forgetful", lambda _: nn.Sequential(layers), (6,), 3, False)
    with pytest.raises(ModelError, match=r"random numbers.*in layer 'strange'"):
        export_graphs(source, 1.0, engine, 4)


class Singular(nn.Module):
    """Uses an operator that has no ONNX form."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Singular values, shape `(n, 1)`."""
        return torch.linalg.svdvals(x.unsqueeze(1))


def test_the_first_error_is_the_one_that_is_told() -> None:
    """A model that is only served may have dropout; what it cannot be exported for is said, and not that."""
    layers = OrderedDict(first=nn.Linear(6, 6), strange=nn.Dropout(0.5), singular=Singular())
    source = ModelSource("singular", lambda _: nn.Sequential(layers), (6,), 1, False)
    with pytest.raises(ModelError, match=r"cannot be exported.*svd"):
        export_graphs(source, 1.0, "inference", 4)
