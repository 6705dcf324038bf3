"""Torch eager, ort-training and portable: the same parameters after 50 steps, for every kind of network, and every optimiser.

An optimiser sees a gradient for each tensor, whatever network it comes from, and a gradient knows of no optimiser. So each kind
of network trains with one of them, each of them trains networks of several kinds, and three networks train with all.

The data has a pattern for each class and moderate noise, and the learning rates are ones at which the models learn. With random
noise and a rate at which training diverges, any two correct programs drift apart: rounding decides which of two equal inputs of a
pooling window is the largest, and from there on they compute different things.
"""

import functools

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

import make_operators as make  # noqa: E402
from edgefl.engine import ort_training, portable, probe  # noqa: E402
from edgefl.engine.contract import batches  # noqa: E402
from edgefl.engine.open import open_engine  # noqa: E402
from edgefl.engine.runtime import available_engines  # noqa: E402
from edgefl.errors import EngineError, ModelError  # noqa: E402
from edgefl.examples import Examples, unlabelled  # noqa: E402
from edgefl.export.exits import with_exits  # noqa: E402
from edgefl.export.forward import forward_graph, trace_forward  # noqa: E402
from edgefl.export.graphs import export_graphs, variant_files  # noqa: E402
from edgefl.export.models import ModelSource  # noqa: E402
from edgefl.export.tensors import layout_of, vector_of  # noqa: E402
from edgefl.export.verify import Reference, verify_graphs  # noqa: E402
from edgefl.recipe import OPTIMIZERS, Recipe  # noqa: E402
from parity_cases import CASES, LAYERS  # noqa: E402

BATCH, COUNT, EPOCHS = 8, 83, 5  # the last batch of each epoch has 3 rows
RATES = {"sgd": 0.05, "momentum": 0.01, "adamw": 0.001}
NATIVE = pytest.mark.skipif("ort-training" not in available_engines(), reason="needs onnxruntime-training-cpu")


@functools.cache  # equal sources are one, so that it is exported once
def source_of(name, optimizer="sgd", proximal=False, freeze=(), personal=()):
    """A case of `parity_cases` as a model source."""
    case = CASES[name]
    recipe = Recipe(case.loss, optimizer, proximal)
    factory = with_exits(lambda _, **__: case.build(), case.exits) if case.exits else lambda _: case.build()
    return ModelSource(name, factory, case.shape, case.outputs, False, recipe, freeze, personal, case.exits)


def examples_for(source, count=COUNT):
    """A pattern for each class with noise, and labels, targets or nothing, as the loss takes them."""
    rng, loss = np.random.default_rng(0), source.recipe.loss
    y = rng.integers(0, source.classes if source.recipe.labels else 4, count)
    patterns = rng.standard_normal((y.max() + 1, *source.input_shape))
    x = (0.7 * patterns[y] + 0.5 * rng.standard_normal((count, *source.input_shape))).astype(np.float32)
    answers = (rng.random((4, source.classes)) < 0.5).astype(np.float32)
    examples = Examples(x, y) if source.recipe.labels else unlabelled(x) if loss == "mse" else Examples(x, answers[y])
    return examples.shaped(source.input_shape, source.classes, loss)


INFERENCE, TRACES = {}, {}


def model_of(source):
    """What of a source its forward graph depends on; engines and optimisers share that graph, and it takes half of an export."""
    return source.name, source.input_shape, source.classes, source.freeze


@pytest.fixture(autouse=True)
def _inference_once(monkeypatch):
    """A model is traced forward once."""

    def forward_once(source, module, layers):
        if model_of(source) not in INFERENCE:
            INFERENCE[model_of(source)] = forward_graph(source, module, layers).SerializeToString()
        return onnx.load_from_string(INFERENCE[model_of(source)])

    def trace_once(source, module):
        if model_of(source) not in TRACES:
            TRACES[model_of(source)] = trace_forward(source, module)
        return TRACES[model_of(source)]

    monkeypatch.setattr("edgefl.export.graphs.forward_graph", forward_once)
    monkeypatch.setattr("edgefl.export.graphs.trace_forward", trace_once)


@functools.cache
def exported_once(source, engine):
    """A source's graphs, at most once in this process: an export gives the same bytes each time."""
    return export_graphs(source, 1.0, engine, BATCH)


def opened(source, engine, directory):
    """A loaded engine at the source's initial values."""
    exported = exported_once(source, engine)
    loaded = open_engine(variant_files(source, exported, engine, BATCH, directory), threads=1)
    loaded.set_vector(vector_of(source.build()))
    return loaded


@pytest.fixture
def watched(monkeypatch):
    """The loss of each step that an engine makes."""
    losses = []

    def run_epochs(step, *arguments):
        def watched_step(rows):
            losses.append(step(rows))
            return losses[-1]

        return original(watched_step, *arguments)

    original = portable.run_epochs
    monkeypatch.setattr(portable, "run_epochs", run_epochs)
    monkeypatch.setattr(ort_training, "run_epochs", run_epochs)
    return losses


@functools.cache  # both engines are compared with it
def trained_in_torch(source, proximal=0.0):
    """The reference's parameters after all steps, the loss of each, and the loss that it is evaluated at then."""
    examples = examples_for(source)
    reference = Reference(source, source.build(), learning_rate=RATES[source.recipe.optimizer], proximal=proximal)
    steps = batches(len(examples), BATCH, EPOCHS, np.random.default_rng(3))
    losses = [reference.step(examples.take(rows)) for _, rows in steps]
    return vector_of(reference.module), losses, reference.evaluated(examples)


def compare(source, engine, directory, losses, proximal=0.0):
    """Largest difference of parameters after all steps and of the first ten losses, and the engine."""
    rate, examples = RATES[source.recipe.optimizer], examples_for(source)
    loaded = opened(source, engine, directory)
    loaded.train(examples, epochs=EPOCHS, learning_rate=rate, rng=np.random.default_rng(3), proximal=proximal)
    vector, expected, evaluated = trained_in_torch(source, proximal)
    assert len(losses) == len(expected) > 50
    parameters = float(np.abs(loaded.vector() - vector).max())
    found = loaded.evaluate(examples)
    assert found.loss == pytest.approx(evaluated, abs=1e-4)
    assert (found.accuracy is None) == (source.recipe.loss == "mse")
    return parameters, float(np.abs(np.array(losses[:10]) - expected[:10]).max()), loaded


# Networks that take long to export train with one optimiser.
ONE = {
    "McMahan CNN": "momentum", "depthwise-separable CNN": "sgd", "1-D CNN": "momentum", "GRU": "adamw", "LSTM": "momentum",
    "attention block": "adamw", "masked classes": "adamw", "CNN with exits": "sgd", "CNN with BatchNorm": "adamw",
}  # fmt: skip
RUNS = [
    (name, engine, optimizer)
    for name, case in CASES.items()
    for engine in case.engines
    for optimizer in ((ONE[name],) if name in ONE else OPTIMIZERS)
]


def test_each_optimiser_trains_networks_of_several_kinds():
    """At least five, two of which no other optimiser trains; and every network is trained in each of its engines."""
    assert {(name, engine) for name, engine, _ in RUNS} == {
        (name, engine) for name, case in CASES.items() for engine in case.engines
    }
    for optimizer in OPTIMIZERS:
        assert sum(engine == "portable" and used == optimizer for _, engine, used in RUNS) >= 5
        assert sum(used == optimizer for used in ONE.values()) >= 2


@pytest.mark.slow
@pytest.mark.parametrize(("name", "engine", "optimizer"), RUNS)
def test_fifty_steps_are_torchs_fifty_steps(name, engine, optimizer, tmp_path, watched, record_property):
    """Parameters within 1e-4 after 55 steps with partly filled batches; the loss within 1e-5 at each of the first ten."""
    if engine not in available_engines():
        pytest.skip("needs onnxruntime-training-cpu")
    parameters, loss, _ = compare(source_of(name, optimizer), engine, tmp_path, watched)
    record_property("parameters", parameters)
    record_property("loss", loss)
    print(f"{name}, {optimizer}, {engine}: parameters {parameters:.1e}, loss {loss:.1e}")
    assert parameters <= 1e-4
    assert loss <= 1e-5


@pytest.mark.parametrize("engine", available_engines())
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_proximal_term_is_fedproxs(engine, optimizer, tmp_path, watched):
    """Training with mu is torch with mu/2 |w - start|^2 in the loss, in both engines and with every optimiser."""
    source = source_of("2NN", optimizer, proximal=True)
    parameters, loss, loaded = compare(source, engine, tmp_path, watched, proximal=0.5)
    assert parameters <= 1e-4
    assert loss <= 1e-5
    start, near = vector_of(source.build()), loaded.vector()
    loaded.set_vector(start)
    loaded.train(examples_for(source), epochs=EPOCHS, learning_rate=RATES[optimizer], rng=np.random.default_rng(3))
    assert np.linalg.norm(near - start) < np.linalg.norm(loaded.vector() - start)


@pytest.mark.parametrize("engine", available_engines())
def test_a_version_without_the_proximal_term_says_so(engine, tmp_path):
    """A plan that asks for it is refused before anything is trained."""
    source = source_of("2NN")
    with pytest.raises(EngineError, match=r"has no proximal term.*--proximal"):
        opened(source, engine, tmp_path).train(
            examples_for(source), epochs=1, learning_rate=0.1, rng=np.random.default_rng(0), proximal=0.1
        )


@pytest.mark.parametrize("engine", available_engines())
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_training_starts_with_a_fresh_optimiser(engine, optimizer, tmp_path):
    """Two trainings from the same start give the same bits: no velocity or moment of the first is left."""
    source, results = source_of("yes-or-no outputs", optimizer), []
    loaded = opened(source, engine, tmp_path)
    for _ in range(2):
        loaded.set_vector(vector_of(source.build()))
        loaded.train(examples_for(source), epochs=2, learning_rate=0.01, rng=np.random.default_rng(1))
        results.append(loaded.vector())
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("engine", available_engines())
@pytest.mark.parametrize("freeze", [("0.*", "2.*"), ("2.*",)])
def test_frozen_parameters_do_not_change_and_the_others_are_torchs(engine, freeze, tmp_path, watched):
    """The last layer alone, or all but one in the middle."""
    source = source_of("2NN", "momentum", freeze=freeze)
    parameters, _, loaded = compare(source, engine, tmp_path, watched)
    assert parameters <= 1e-4
    start, end = (loaded.layout.views(vector) for vector in (vector_of(source.build()), loaded.vector()))
    for tensor in loaded.layout.tensors:
        assert np.array_equal(start[tensor.name], end[tensor.name]) == (tensor.role == "frozen")


@pytest.mark.parametrize("engine", available_engines())
def test_a_graph_computes_no_gradient_that_nobody_needs(engine):
    """With all but the last layer frozen, of the six matrix products of the backward pass one is left."""

    def products(freeze):
        graph = onnx.load_from_string(exported_once(source_of("2NN", freeze=freeze), engine).graphs["train"]).graph
        return sum(node.op_type in {"MatMul", "Gemm", "FusedMatMul"} for node in graph.node)

    assert products(("0.*", "2.*")) == 3 + 1
    assert products(()) == 3 + 5


def test_running_statistics_follow_the_real_rows_only(tmp_path):
    """One step on three rows of a batch of eight updates BatchNorm's state as torch does on these three."""
    source = source_of("CNN with BatchNorm")
    loaded, examples = opened(source, "portable", tmp_path), examples_for(source, 3)
    loaded.train(examples, epochs=1, learning_rate=0.1, rng=np.random.default_rng(0))
    reference = Reference(source, source.build(), learning_rate=0.1)
    reference.step(examples)
    np.testing.assert_allclose(loaded.vector(), vector_of(reference.module), atol=1e-6)
    states = [tensor.name for tensor in loaded.layout.tensors if tensor.role == "state"]
    assert len(states) == 6


@functools.cache
def _window_factory():
    from torch import nn

    def factory(_):
        return nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(4 * 6, 3))

    return factory


def test_frozen_statistics_compute_as_in_evaluation(tmp_path):
    """Freezing them by name is torch's `eval()` of that layer: nothing of the batch enters."""
    recipe = Recipe("cross-entropy", "sgd")
    source = ModelSource("window", _window_factory(), (2, 8), 3, False, recipe, freeze=("1.running*",))
    exported = export_graphs(source, 1.0, "portable", BATCH)
    assert verify_graphs(source, 1.0, exported, engine="portable", batch=BATCH).difference < 1e-5
    loaded = open_engine(variant_files(source, exported, "portable", BATCH, tmp_path), threads=1)
    loaded.set_vector(vector_of(source.build()))
    loaded.train(examples_for(source), epochs=1, learning_rate=0.1, rng=np.random.default_rng(0))
    assert (loaded.layout.views(loaded.vector())["1.running_mean"] == 0).all()


@NATIVE
def test_the_native_engine_says_that_it_cannot_train_batchnorm():
    """And which engine can."""
    with pytest.raises(ModelError, match=r"running statistics.*portable engine"):
        export_graphs(source_of("CNN with BatchNorm"), 1.0, "ort-training", BATCH)


@pytest.mark.parametrize("engine", available_engines())
def test_an_autoencoder_scores_what_it_has_not_seen_higher(engine, tmp_path):
    """Trained without labels; the score of an example is the mean squared error of its reconstruction."""
    source = source_of("autoencoder", "adamw")
    loaded, usual = opened(source, engine, tmp_path), examples_for(source)
    loaded.train(unlabelled(usual.x), epochs=30, learning_rate=0.01, rng=np.random.default_rng(0))
    scores = loaded.scores(unlabelled(usual.x))
    reconstructed = loaded.predict(usual.x)
    np.testing.assert_allclose(scores, np.square(reconstructed - usual.x.reshape(len(usual), -1)).mean(1), rtol=1e-5)
    assert loaded.evaluate(unlabelled(usual.x)).loss == pytest.approx(float(scores.mean()), rel=1e-5)
    strange = unlabelled(np.random.default_rng(9).standard_normal(usual.x.shape).astype(np.float32))
    assert loaded.scores(strange).min() > np.median(scores)


@pytest.mark.parametrize("name", ["2NN", "yes-or-no outputs"])
def test_the_scores_are_the_parts_of_the_evaluated_loss(name, tmp_path):
    """Their mean is the loss, for labels and for targets."""
    source = source_of(name)
    loaded, examples = opened(source, "portable", tmp_path), examples_for(source)
    assert float(loaded.scores(examples).mean()) == pytest.approx(loaded.evaluate(examples).loss, abs=1e-5)


def test_optimiser_state_is_no_part_of_the_vector():
    """What travels has the model's size whatever the optimiser."""
    assert layout_of(source_of("2NN", "adamw").build()) == layout_of(source_of("2NN").build())


def proved(source, engine):
    """The difference from torch after two steps, as push measures it."""
    exported = export_graphs(source, 1.0, engine, BATCH)
    return verify_graphs(source, 1.0, exported, engine=engine, batch=BATCH).difference


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_each_layer_trains_where_the_list_says_so_and_is_refused_elsewhere(name, monkeypatch):
    """Two steps in each engine against torch; what an engine cannot train is an error of ours, before anything is sent.

    What cannot be trained may crash ONNX Runtime, so it has its process as in a push; what can is trained in this one.
    """
    layer = LAYERS[name]
    source = ModelSource(name, lambda _: layer.network(), layer.shape, 4, False)
    for engine in available_engines():
        if engine in layer.engines:
            with monkeypatch.context() as here:
                here.setattr(probe, "_run_child", lambda *paths: probe.main([str(path) for path in paths]))
                assert proved(source, engine) < 1e-5
        else:
            with pytest.raises((ModelError, EngineError)):
                proved(source, engine)


def test_the_list_of_operators_is_up_to_date():
    """docs/operators.md is what `tests/make_operators.py` writes."""
    assert make.DOCUMENT.read_text() == make.document()


@pytest.mark.parametrize(
    ("layer", "shape", "words"),
    [
        (lambda: torch.nn.GRU(4, 6, batch_first=True), (129, 4), "129 time steps"),
        (lambda: torch.nn.LSTM(4, 6, num_layers=2, batch_first=True, bidirectional=True), (40, 4), "160 time steps"),
        (lambda: torch.nn.LSTM(4, 6, proj_size=3, batch_first=True), (5, 4), "a projection"),
        (lambda: torch.nn.GRU(4, 6, num_layers=2, dropout=0.5, batch_first=True), (5, 4), "dropout"),
        (lambda: torch.nn.BatchNorm1d(5, momentum=None), (5, 4), "momentum=None"),
        (lambda: torch.nn.BatchNorm1d(5, track_running_stats=False), (5, 4), "track_running_stats=False"),
    ],
)
def test_layers_beyond_the_bounds_are_named(layer, shape, words):
    """What is too long or keeps no state says which layer it is, what was found, and what to do."""

    class First(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = layer()

        def forward(self, x):
            out = self.inner(x)
            return (out[0] if isinstance(out, tuple) else out)[:, -1]

    source = ModelSource("deep", lambda _: First(), shape, 4, False)
    with pytest.raises(ModelError, match=f"'inner'.*{words}.*\\. [A-Z]"):
        export_graphs(source, 1.0, "portable", BATCH)
