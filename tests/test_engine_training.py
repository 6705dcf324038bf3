"""Both engines against torch and against each other: the same numbers, step after step."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402  needs torch

from edgefl.engine.contract import batches  # noqa: E402
from edgefl.engine.open import open_engine  # noqa: E402
from edgefl.engine.runtime import available_engines, onnxruntime  # noqa: E402
from edgefl.errors import DataError, EngineError, ModelError  # noqa: E402
from edgefl.examples import Examples  # noqa: E402
from edgefl.export.graphs import export_graphs, variant_files  # noqa: E402
from edgefl.export.models import ModelSource, load_factory  # noqa: E402
from edgefl.export.tensors import load_vector, vector_of  # noqa: E402
from edgefl.export.verify import Reference  # noqa: E402
from edgefl.recipe import Recipe  # noqa: E402

ENGINES = available_engines()
BATCH = 8


def tiny(width):
    """Three classes from five values."""
    del width
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))


TINY = ModelSource("tiny", tiny, (5,), 3, scalable=False)


@functools.cache
def exported(name, engine, batch):
    """A source and its graphs at full width, made once."""
    source = TINY if name == "tiny" else load_factory(name)
    return source, export_graphs(source, 1.0, engine, batch)


def examples_for(source, count, seed=0):
    """Random examples, slightly different by class, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, source.classes, count)
    x = rng.standard_normal((count, *source.input_shape)) + 0.3 * y.reshape(-1, *([1] * len(source.input_shape)))
    return Examples(x.astype(np.float32), y)


def train_in_torch(module, examples, batch, epochs, learning_rate, seed):
    """What the engines do, in torch: parameters after it, and the mean loss of the first and last epoch."""
    sums = [0.0] * epochs
    reference = Reference(TINY, module, learning_rate=learning_rate)
    for epoch, rows in batches(len(examples), batch, epochs, np.random.default_rng(seed)):
        sums[epoch] += reference.step(examples.take(rows)) * len(rows)
    return vector_of(module), sums[0] / len(examples), sums[-1] / len(examples)


@pytest.fixture(params=ENGINES)
def engine(request, tmp_path):
    """Either engine with the tiny model, at its initial weights."""
    source, graphs = exported("tiny", request.param, BATCH)
    loaded = open_engine(variant_files(source, graphs, request.param, BATCH, tmp_path), threads=1)
    loaded.set_vector(vector_of(source.build()))
    return loaded


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist-2nn", "mnist-cnn", "har-cnn1d"])
def test_twenty_steps_are_torchs_twenty_steps(name, tmp_path):
    """Parameters, losses and accuracy after 22 steps with partly filled batches agree between torch and both engines."""
    count, batch, epochs, rate, seed = 85, 8, 2, 0.02, 3
    module = load_factory(name).build()
    start = vector_of(module)
    examples = examples_for(load_factory(name), count)
    expected, before, after = train_in_torch(module, examples, batch, epochs, rate, seed)
    with torch.no_grad():
        logits = module(torch.from_numpy(examples.x))
    found = {}
    for kind in ENGINES:
        source, graphs = exported(name, kind, batch)
        directory = tmp_path / kind
        directory.mkdir()
        loaded = open_engine(variant_files(source, graphs, kind, batch, directory), threads=1)
        loaded.set_vector(start)
        trained = loaded.train(examples, epochs=epochs, learning_rate=rate, rng=np.random.default_rng(seed))
        assert trained.steps == 22
        assert trained.loss_before == pytest.approx(before, abs=1e-4)
        assert trained.loss_after == pytest.approx(after, abs=1e-4)
        found[kind] = loaded.vector()
        np.testing.assert_allclose(found[kind], expected, rtol=0, atol=1e-4)
        evaluation = loaded.evaluate(examples)
        assert evaluation.loss == pytest.approx(
            nn.functional.cross_entropy(logits, torch.from_numpy(examples.y)).item(), abs=1e-3
        )
        assert evaluation.accuracy == pytest.approx((logits.argmax(1).numpy() == examples.y).mean(), abs=0.02)
    for other in found.values():
        np.testing.assert_allclose(other, found["portable"], rtol=0, atol=1e-4)


@given(count=st.integers(1, 3 * BATCH), epochs=st.integers(1, 3), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_any_number_of_examples_trains_as_in_torch(tmp_path_factory, count, epochs, seed):
    """A last batch of any size counts exactly as what it is, in both engines."""
    module = TINY.build()
    start, examples = vector_of(module), examples_for(TINY, count, seed)
    expected, before, _ = train_in_torch(module, examples, BATCH, epochs, 0.1, seed)
    for kind in ENGINES:
        loaded = _tiny_engine(kind, str(tmp_path_factory.getbasetemp()))
        loaded.set_vector(start)
        trained = loaded.train(examples, epochs=epochs, learning_rate=0.1, rng=np.random.default_rng(seed))
        np.testing.assert_allclose(loaded.vector(), expected, rtol=0, atol=1e-5)
        assert trained.steps == epochs * -(-count // BATCH)
        assert trained.loss_before == pytest.approx(before, abs=1e-5)


@functools.cache
def _tiny_engine(kind, base):
    from pathlib import Path

    directory = Path(base) / f"tiny-{kind}"
    directory.mkdir()
    source, graphs = exported("tiny", kind, BATCH)
    return open_engine(variant_files(source, graphs, kind, BATCH, directory), threads=1)


def test_padding_rows_have_no_influence_at_all():
    """Whatever stands in masked rows, the outputs of the portable step are the same to the last bit."""
    source, graphs = exported("tiny", "portable", BATCH)
    session = onnxruntime().InferenceSession(graphs.graphs["train"], providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    examples = examples_for(source, BATCH)
    mask = np.array([1, 1, 1, 0, 0, 0, 0, 0], dtype=np.float32)
    outputs = []
    for scale in (0.0, 1.0, 1e4):
        x, y = examples.x.copy(), examples.y.copy()
        x[3:] = scale * rng.standard_normal((5, 5))
        y[3:] = rng.integers(0, 3, 5)
        feeds = {**graphs.layout.views(vector_of(source.build())), "x": x, "y": y, "w": mask, "lr": np.array(0.1, np.float32)}
        outputs.append(session.run(None, feeds))
    for other in outputs[1:]:
        for a, b in zip(outputs[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_vector_goes_in_and_comes_out_by_copy(engine):
    """What is set comes back; changing either array afterwards changes nothing in the engine."""
    vector = np.random.default_rng(1).standard_normal(engine.layout.size).astype(np.float32)
    kept = vector.copy()
    engine.set_vector(vector)
    vector[:] = 0
    out = engine.vector()
    out[:] = 1
    np.testing.assert_array_equal(engine.vector(), kept)


@pytest.mark.parametrize("size", [0, 1, 1000])
def test_a_vector_of_a_wrong_length_is_refused(engine, size):
    """And the parameters stay as they were."""
    before = engine.vector()
    with pytest.raises(ModelError, match="expected 66 values"):
        engine.set_vector(np.zeros(size, dtype=np.float32))
    np.testing.assert_array_equal(engine.vector(), before)


def test_training_is_reproducible(engine):
    """Equal weights, examples and seeds give equal bits."""
    start, examples, results = engine.vector(), examples_for(TINY, 30), []
    for _ in range(2):
        engine.set_vector(start)
        engine.train(examples, epochs=3, learning_rate=0.1, rng=np.random.default_rng(7))
        results.append(engine.vector())
    np.testing.assert_array_equal(*results)


def test_training_learns(engine):
    """The loss falls and the accuracy rises above chance."""
    examples = examples_for(TINY, 200)
    trained = engine.train(examples, epochs=20, learning_rate=0.1, rng=np.random.default_rng(0))
    evaluation = engine.evaluate(examples)
    assert trained.loss_after < trained.loss_before
    assert evaluation.accuracy > 0.5
    assert evaluation.count == 200


def test_evaluation_and_prediction_do_not_depend_on_chunks(engine):
    """More examples than one call takes give torch's logits and the mean over all of them."""
    examples = examples_for(TINY, 150)
    with torch.no_grad():
        logits = TINY.build()(torch.from_numpy(examples.x))
    np.testing.assert_allclose(engine.predict(examples.x), logits.numpy(), atol=1e-5)
    expected = nn.functional.cross_entropy(logits, torch.from_numpy(examples.y)).item()
    assert engine.evaluate(examples).loss == pytest.approx(expected, abs=1e-5)
    assert engine.predict(examples.x[:0]).shape == (0, 3)


def test_data_in_another_shape_of_equal_size_is_taken(engine):
    """Examples are brought into the model's input shape."""
    examples = examples_for(TINY, 10)
    flat = Examples(examples.x.reshape(10, 5, 1), examples.y)
    assert engine.evaluate(flat) == engine.evaluate(examples)


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (np.zeros((4, 6)), [0, 1, 2, 0], "does not fit the model"),
        (np.zeros((4, 5)), [0, 1, 2, 3], "label out of range"),
        (np.zeros((0, 5)), [], "no examples"),
    ],
)
def test_data_that_does_not_fit_is_refused(engine, x, y, words):
    """Before anything is computed, by training and evaluation alike."""
    examples = Examples(x.astype(np.float32), np.array(y, dtype=np.int64))
    before = engine.vector()
    with pytest.raises(DataError, match=words):
        engine.train(examples, epochs=1, learning_rate=0.1, rng=np.random.default_rng(0))
    with pytest.raises(DataError, match=words):
        engine.evaluate(examples)
    np.testing.assert_array_equal(engine.vector(), before)


def test_an_input_of_a_wrong_shape_is_refused(engine):
    """Prediction takes the model's input shape only."""
    with pytest.raises(DataError, match="the input does not fit"):
        engine.predict(np.zeros((2, 6), dtype=np.float32))


def test_divergence_is_an_error_with_a_remedy(engine):
    """A loss that is no longer finite stops training and names the learning rate; the engine is usable afterwards."""
    start, examples = engine.vector(), examples_for(TINY, 40)
    with pytest.raises(EngineError, match=r"diverged.*Lower the learning rate"):
        engine.train(examples, epochs=50, learning_rate=1e30, rng=np.random.default_rng(0))
    engine.set_vector(start)
    assert np.isfinite(engine.train(examples, epochs=1, learning_rate=0.1, rng=np.random.default_rng(0)).loss_after)


def test_parameters_that_overflow_in_the_last_step_are_noticed(engine):
    """No loss sees the last update, so the parameters themselves are checked."""
    examples = examples_for(TINY, BATCH)
    with pytest.raises(EngineError, match="diverged"):
        engine.train(Examples(examples.x * 1e30, examples.y), epochs=1, learning_rate=1e30, rng=np.random.default_rng(0))


def test_what_is_gone_stays_zero_as_if_the_model_did_not_have_it(engine):
    """Training under a mask gives what torch gives with gradients that are zero there; nothing that is gone moves."""
    source = TINY
    examples, module = examples_for(source, 50), source.build()
    kept = (np.random.default_rng(3).random(engine.layout.size) < 0.4).astype(np.float32)
    engine.set_vector(vector_of(module) * kept)
    load_vector(module, vector_of(module) * kept)
    masks = {name: torch.from_numpy(view.copy()) for name, view in engine.layout.views(kept).items()}
    for name, parameter in module.named_parameters():
        parameter.register_hook(lambda gradient, name=name: gradient * masks[name])
    expected, _, _ = train_in_torch(module, examples, BATCH, 3, 0.2, seed=4)
    engine.train(examples, epochs=3, learning_rate=0.2, rng=np.random.default_rng(4), kept=kept)
    assert not engine.vector()[kept == 0].any()
    np.testing.assert_allclose(engine.vector(), expected, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_both_engines_train_alike_under_a_mask(optimizer, tmp_path):
    """Also with an optimiser that remembers: what is gone stays gone, and the numbers are the same."""
    if len(ENGINES) < 2:
        pytest.skip("only one engine here")
    source = ModelSource("tiny", tiny, (5,), 3, scalable=False, recipe=Recipe("cross-entropy", optimizer))
    kept, ends = None, []
    for name in ENGINES:
        graphs = export_graphs(source, 1.0, name, BATCH)
        (tmp_path / name).mkdir()
        loaded = open_engine(variant_files(source, graphs, name, BATCH, tmp_path / name), threads=1)
        kept = (np.random.default_rng(3).random(loaded.layout.size) < 0.4).astype(np.float32)
        loaded.set_vector(vector_of(source.build()) * kept)
        loaded.train(examples_for(source, 50), epochs=3, learning_rate=0.01, rng=np.random.default_rng(4), kept=kept)
        ends.append(loaded.vector())
    assert not ends[0][kept == 0].any()
    assert not ends[1][kept == 0].any()
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-5)
