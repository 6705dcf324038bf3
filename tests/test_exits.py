"""Models with several exits: what a factory must keep to, what they learn from, and what a shallower one is to the whole."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from edgefl.codec.weights import Precision  # noqa: E402
from edgefl.compress.axes import index_from_axes  # noqa: E402
from edgefl.compress.sensitivity import Baseline  # noqa: E402
from edgefl.engine.contract import batches  # noqa: E402
from edgefl.engine.curvature import curvature  # noqa: E402
from edgefl.engine.open import open_engine  # noqa: E402
from edgefl.errors import EngineError, ModelError  # noqa: E402
from edgefl.examples import Examples  # noqa: E402
from edgefl.export.graphs import export_graphs, variant_files  # noqa: E402
from edgefl.export.losses import loss_and_gradient, loss_in_torch  # noqa: E402
from edgefl.export.measuring import right_of  # noqa: E402
from edgefl.export.models import load_factory  # noqa: E402
from edgefl.export.tensors import layout_of, load_vector, outputs_of, vector_of  # noqa: E402
from edgefl.export.verify import Reference, verify_graphs  # noqa: E402
from edgefl.recipe import LABELLED, Recipe  # noqa: E402
from edgefl.server.cuts import Pruner, full_cuts, nested_cuts, sizes_of_graphs  # noqa: E402
from edgefl.server.sensing import offer  # noqa: E402

MODELS = '''
import torch
from torch import nn

class Stairs(nn.Module):
    """Dense layers with an exit behind each."""

    input_shape = (6,)

    def __init__(self, width=1.0, exits=3):
        super().__init__()
        n = max(1, round(16 * width))
        self.stages = nn.ModuleList(nn.Linear(6 if i == 0 else n, n) for i in range(exits))
        self.exits = nn.ModuleList(nn.Linear(n, 4) for _ in range(exits))

    def forward(self, x):
        found = []
        for stage, exit in zip(self.stages, self.exits):
            x = stage(x).relu()
            found.append(exit(x))
        return torch.stack(found, 1)

class Fixed(Stairs):
    def __init__(self, *, exits=3):
        super().__init__(exits=exits)

def without_default(width, exits):
    return Stairs(width, exits)

class Single(Stairs):
    def forward(self, x):
        return super().forward(x)[:, -1]

class Deaf(Stairs):
    def __init__(self, width=1.0, exits=3):
        super().__init__(width, 3)

class OneHead(nn.Module):
    input_shape = (6,)

    def __init__(self, width=1.0, exits=2):
        super().__init__()
        self.body = nn.ModuleList(nn.Linear(6, 6) for _ in range(exits))
        self.last = nn.Linear(6, 4) if exits == 2 else nn.Linear(6, 4, bias=False)
        self.first = nn.Linear(6, 4) if exits == 2 else nn.Identity()

    def forward(self, x):
        x = self.body[0](x)
        if len(self.body) == 1:
            return self.last(x)[:, None]
        return torch.stack([self.first(x), self.last(self.body[1](x))], 1)

class Renamed(Stairs):
    def __init__(self, width=1.0, exits=3):
        super().__init__(width, exits)
        self.exits[-1] = nn.Sequential(self.exits[-1])

class Backwards(Stairs):
    def forward(self, x):
        return super().forward(x).flip(1)
'''


@pytest.fixture(autouse=True)
def _models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stairs.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "stairs", raising=False)


def examples(rows: int, seed: int = 0) -> Examples:
    """Six numbers, and which of the first four is the largest."""
    x = np.random.default_rng(seed).standard_normal((rows, 6)).astype(np.float32)
    return Examples(x, x[:, :4].argmax(1).astype(np.int64))


@settings(max_examples=40, deadline=None)
@given(
    loss=st.sampled_from(LABELLED),
    rows=st.integers(1, 5),
    padding=st.integers(0, 3),
    exits=st.integers(1, 4),
    scale=st.sampled_from([0.1, 3.0, 300.0]),
    mutual=st.sampled_from([1.0, 0.3, 0.0]),
    seed=st.integers(0, 999),
)
def test_the_written_gradients_are_autograds(loss, rows, padding, exits, scale, mutual, seed) -> None:
    """Of every loss of labels, over any number of exits, with padding, and without overflow where exits are sure."""
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(rows + padding, exits, 5, generator=generator) * scale
    y = torch.randint(0, 5, (rows + padding,), generator=generator)
    w = torch.cat([torch.ones(rows), torch.zeros(padding)])
    real = outputs[:rows].clone().requires_grad_()
    expected = loss_in_torch(loss, real, y[:rows], mutual)
    expected.backward()
    value, gradient = loss_and_gradient(loss, outputs, y, w, None if mutual == 1.0 else torch.tensor(mutual))
    torch.testing.assert_close(value, expected.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient[:rows], real.grad, rtol=1e-4, atol=1e-6)
    assert not gradient[rows:].any()


def test_one_exit_teaches_itself_nothing() -> None:
    """Self-distillation of a single exit is cross-entropy, and so is that of exits that agree."""
    outputs, y = torch.randn(4, 1, 3), torch.tensor([0, 1, 2, 0])
    plain = loss_in_torch("cross-entropy", outputs, y)
    torch.testing.assert_close(loss_in_torch("self-distillation", outputs, y), plain)
    torch.testing.assert_close(loss_in_torch("self-distillation", outputs.expand(4, 3, 3), y), plain)


def test_a_factory_says_by_its_parameter_that_it_has_exits() -> None:
    """How many there are is what it gives by default; with a width or without one."""
    source = load_factory("stairs:Stairs", Recipe("self-distillation"))
    assert (source.exits, source.classes, source.scalable) == (3, 4, True)
    assert not load_factory("stairs:Fixed").scalable
    assert load_factory("mnist-exits").exits == 4
    assert load_factory("mnist-2nn").exits == 0


@pytest.mark.parametrize(
    ("name", "loss", "words"),
    [
        ("stairs:without_default", "cross-entropy", "how many exits the whole model has.*exits: int = 4"),
        ("stairs:Single", "cross-entropy", "logits of its exits.*torch.stack"),
        ("stairs:Deaf", "cross-entropy", r"other exits than asked for.*\(1, 4\).*\(3, 4\)"),
        ("stairs:OneHead", "cross-entropy", "computes something else"),
        ("stairs:Renamed", "cross-entropy", r"'exits\.0\.0\.weight'.*that the whole has not.*Name and size"),
        ("stairs:Backwards", "cross-entropy", "computes something else than the first exits.*in order"),
        ("stairs:Stairs", "bce", "has exits, which classify"),
        ("mnist-2nn", "self-distillation", "no exits that could teach each other"),
    ],
)
def test_what_is_wrong_with_exits_is_said(name, loss, words) -> None:
    """Before anything is exported, and with what to do."""
    with pytest.raises(ModelError, match=f"(?s){words}"):
        load_factory(name, Recipe(loss))


def test_there_are_no_more_exits_than_the_model_has() -> None:
    """Nor fewer than one; a model without exits has none."""
    source = load_factory("stairs:Stairs")
    for wrong in (0, 4):
        with pytest.raises(ModelError, match="expected 1 to 3"):
            source.shallower(wrong)
    with pytest.raises(ModelError, match="expected none"):
        load_factory("mnist-2nn").shallower(1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "exits", "width"), [(LABELLED[0], 3, 0.5), (LABELLED[1], 3, 1.0), (LABELLED[2], 2, 0.5), (LABELLED[2], 1, 1.0)]
)
def test_each_depth_trains_as_torch_does(loss, exits, width) -> None:
    """Exported and compared with torch as a push does it."""
    source = load_factory("stairs:Stairs", Recipe(loss, "momentum")).shallower(exits)
    exported = export_graphs(source, width, "portable", 4)
    assert verify_graphs(source, width, exported, engine="portable", batch=4).difference < 1e-5


def test_a_round_chooses_how_much_exits_learn_of_each_other(tmp_path: Path) -> None:
    """The same graph trains as cross-entropy does with weight 0, and as self-distillation with weight 1; torch agrees between."""
    data, ends, sharp = examples(20), {}, {}
    for name, recipe, mutual in (
        ("plain", Recipe("cross-entropy"), 1.0),
        ("none", Recipe("self-distillation", mutual=True), 0.0),
        ("all", Recipe("self-distillation", mutual=True), 1.0),
        ("fixed", Recipe("self-distillation"), 1.0),
    ):
        source = load_factory("stairs:Stairs", recipe)
        exported = export_graphs(source, 1.0, "portable", 4)
        (tmp_path / name).mkdir()
        engine = open_engine(variant_files(source, exported, "portable", 4, tmp_path / name), threads=1)
        engine.set_vector(vector_of(source.build(seed=1)))
        engine.train(data, epochs=3, learning_rate=0.1, rng=np.random.default_rng(0), mutual=mutual)
        ends[name] = engine.vector()
        sharp[name] = curvature(engine, recipe, ends[name], data.take(np.arange(4)), 0.1, kept=None, mutual=mutual)
    np.testing.assert_allclose(ends["none"], ends["plain"], atol=1e-6)
    np.testing.assert_allclose(ends["all"], ends["fixed"], atol=1e-6)
    assert np.abs(ends["all"] - ends["none"]).max() > 1e-3
    assert sharp["none"] == pytest.approx(sharp["plain"], rel=0.05)
    assert sharp["all"] == pytest.approx(sharp["fixed"], rel=0.05)
    with pytest.raises(EngineError, match=r"Push the model again with --loss self-distillation"):
        engine.train(data, epochs=1, learning_rate=0.1, rng=np.random.default_rng(0), mutual=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("exits", [3, 1])
def test_a_chosen_weight_trains_as_torch_does(exits) -> None:
    """Compared as a push does it, with a weight between none and all; a single exit takes it and has nobody to learn of."""
    recipe = Recipe("self-distillation", "adamw", proximal=True, mutual=True)
    source = load_factory("stairs:Stairs", recipe).shallower(exits)
    exported = export_graphs(source, 0.5, "portable", 4)
    assert verify_graphs(source, 0.5, exported, engine="portable", batch=4).difference < 1e-5


def test_the_native_engine_refuses_exits_and_says_which_does_not() -> None:
    """So that a push takes the portable engine for its boards."""
    with pytest.raises(ModelError, match=r"exits.*portable engine"):
        export_graphs(load_factory("stairs:Stairs"), 1.0, "ort-training", 4)


def test_a_model_with_exits_gives_one_answer(tmp_path: Path) -> None:
    """The graphs for predictions and evaluation take the mean of the exits' logits, and know nothing else of exits."""
    source = load_factory("stairs:Stairs", Recipe("self-distillation"))
    engine = open_engine(variant_files(source, export_graphs(source, 1.0, "portable", 4), "portable", 4, tmp_path), threads=1)
    module, data = source.build(seed=1), examples(50)
    engine.set_vector(vector_of(module))
    with torch.no_grad():
        expected = module(torch.from_numpy(data.x)).mean(1).numpy()
    np.testing.assert_allclose(engine.predict(data.x), expected, atol=1e-6)
    found = engine.evaluate(data)
    assert found.accuracy == pytest.approx((expected.argmax(1) == data.y).mean())
    assert float(engine.scores(data).mean()) == pytest.approx(found.loss, abs=1e-5)


def test_self_distillation_brings_exits_together() -> None:
    """All exits learn; with lessons of each other they disagree less than without."""
    apart, data, test = {}, examples(800), examples(500, seed=1)
    for loss in ("cross-entropy", "self-distillation"):
        source = load_factory("stairs:Stairs", Recipe(loss))
        reference = Reference(source, source.build(seed=2), learning_rate=0.3)
        for _, rows in batches(len(data), 16, 10, np.random.default_rng(0)):
            reference.step(data.take(rows))
        with torch.no_grad():
            beliefs = reference.module(torch.from_numpy(test.x)).softmax(2)
        right = (beliefs.argmax(2).numpy() == test.y[:, None]).mean(0)
        assert right.min() > 0.7
        apart[loss] = float((beliefs - beliefs.mean(1, keepdim=True)).abs().sum(2).mean())
    assert apart["self-distillation"] < 0.9 * apart["cross-entropy"]


def test_every_depth_is_offered_at_every_width_as_a_view_of_the_parent() -> None:
    """A cut's slice of the parent computes the parent's first exits; names say depth and width, the whole model comes first."""
    source = load_factory("stairs:Stairs")
    cuts = {cut.structure.name: cut for cut in nested_cuts(source)}
    assert next(iter(cuts)) == "w1"
    assert {"w0.5", "d2w1", "d2w0.5", "d1w1", "d1w0.0625"} <= set(cuts)
    whole, x = source.build(seed=3), torch.randn(5, 6)
    for exits in (1, 2):
        cut = cuts[f"d{exits}w1"]
        module = cut.source.build(cut.structure.width)
        assert layout_of(module) == cut.structure.layout
        load_vector(module, cut.slice(vector_of(whole)))
        with torch.no_grad():
            torch.testing.assert_close(module(x), whole(x)[:, :exits])
            assert outputs_of(module, x).shape == (5, 4)
    assert len(np.unique(cuts["d2w0.5"].index)) == cuts["d2w0.5"].structure.layout.size


def test_a_depth_is_pruned_like_any_model_and_keeps_the_channels_of_the_whole() -> None:
    """Its first exits, without what they read of channels that give nothing, say the same; a restart finds the same places."""
    source = load_factory("stairs:Fixed")
    whole, x = source.build(seed=3), torch.randn(5, 6)
    pruner = Pruner(source, vector_of(whole), None)
    full = {cut.source.exits: cut for cut in full_cuts(nested_cuts(source))}
    parts = {exits: pruner if exits == 3 else pruner.at(cut) for exits, cut in full.items()}
    halves = {exits: part.cut({group.name: 0.5 for group in part.groups}) for exits, part in parts.items()}
    parent = layout_of(whole)
    for exits, cut in halves.items():
        assert cut.structure.name == f"{'' if exits == 3 else f'd{exits}'}p{cut.structure.layout.size}"
        assert cut.source.exits == exits
        np.testing.assert_array_equal(index_from_axes(parent, cut.structure.layout, cut.axes), cut.index)
        module = cut.source.build()
        assert layout_of(module) == cut.structure.layout
        load_vector(module, cut.slice(np.arange(parent.size, dtype=np.float32)))
        assert np.array_equal(vector_of(module), cut.index), "names and places go together"
        quiet = vector_of(whole)
        lost = np.setdiff1d(full[exits].index, cut.index)
        quiet[lost] = 0.0
        load_vector(whole, quiet)
        load_vector(module, cut.slice(quiet))
        with torch.no_grad():
            torch.testing.assert_close(module(x), whole(x)[:, :exits])
        load_vector(whole, vector_of(source.build(seed=3)))
    places = {exits: set(cut.index.tolist()) for exits, cut in halves.items()}
    assert places[1] < places[2] < places[3]


@pytest.mark.parametrize("marks", [{"freeze": ("*.0.*",)}, {"personal": ("*.0.*",)}])
def test_depths_with_nothing_to_train_or_to_share_are_not_offered(marks) -> None:
    """Where the first layers and the first exit are frozen or personal, a board needs the second exit as well."""
    offered = {cut.source.exits for cut in nested_cuts(load_factory("stairs:Stairs", **marks))}
    assert offered == {3, 2}


@pytest.mark.slow
def test_depths_are_offered_beside_pruned_structures_by_what_each_is_measured_to_answer() -> None:
    """A trained model's accuracy at each depth is that of the exits which are left; frozen first layers go with any of them."""
    source, data, test = load_factory("stairs:Fixed", Recipe("self-distillation")), examples(800), examples(400, seed=1)
    reference = Reference(source, source.build(seed=2), learning_rate=0.3)
    for _, rows in batches(len(data), 16, 8, np.random.default_rng(0)):
        reference.step(data.take(rows))
    found = offer(source, vector_of(reference.module), test, lambda _: None, freezable=True)
    with torch.no_grad():
        logits = reference.module(torch.from_numpy(test.x))
    right = [logits[:, :exits].mean(1).argmax(1).numpy() == test.y for exits in (1, 2, 3)]
    baseline = Baseline(float(right[-1].mean()), 0.5, len(test))
    for exits, name in ((3, "w1"), (2, "d2w1"), (1, "d1w1")):
        turned = float((right[exits - 1] != right[-1]).mean())
        assert found.drops[name] == pytest.approx(baseline.cost(float(right[exits - 1].mean()), turned))
        assert found.predicted(found.cuts[name].structure, Precision.FP32) > 0.6
    kinds = {name.rpartition("p")[0] for name in found.cuts if "p" in name and "f" not in name}
    assert kinds == {"", "d1", "d2"}
    for name, cut in found.cuts.items():
        assert np.array_equal(np.unique(cut.index), np.sort(cut.index)), name
        right_here = right_of(cut.source, cut.structure.width, cut.slice(vector_of(reference.module)), test)
        turned = float(np.abs(right_here - right[-1]).mean())
        assert found.drops[name] == pytest.approx(baseline.cost(float(right_here.mean()), turned)), name
    frozen = found.cuts["d2w1f1"]
    assert [t.name for t in frozen.structure.layout.tensors if t.role == "frozen"] == ["stages.0.weight", "stages.0.bias"]
    assert frozen.source.exits == 2


@pytest.mark.slow
def test_graphs_that_are_not_exported_yet_are_guessed_no_larger_than_they_are() -> None:
    """Otherwise a shallower structure that fits would never be tried; what is known stays."""
    source = load_factory("stairs:Stairs")
    cuts = {cut.structure.name: cut for cut in nested_cuts(source) if cut.structure.width == 1.0}
    real = {name: sum(map(len, export_graphs(cut.source, 1.0, "portable", 4).graphs.values())) for name, cut in cuts.items()}
    assert set(sizes_of_graphs(cuts, {}).values()) == {0}
    for known, size in real.items():
        guessed = sizes_of_graphs(cuts, {known: size})
        assert guessed[known] == size
        assert all(0 < guessed[name] <= real[name] for name in real)
