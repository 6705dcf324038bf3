"""Checked-in variants: what a board without torch and onnx can be tested with, and the script that made them."""

import subprocess
import sys

import numpy as np
import pytest

import make_graphs as make
from edgefl.codec.update import decode
from edgefl.codec.weights import Precision, encode_weights
from edgefl.device.job import Done, Job, decode_answer, encode_line
from edgefl.engine.contract import VariantFiles
from edgefl.engine.graphfile import read_graph
from edgefl.engine.open import open_engine
from edgefl.engine.runtime import available_engines
from edgefl.examples import Examples
from edgefl.store.outbox import read_residual, read_update
from edgefl.wire.rounds import Task

NAMES = sorted(make.CASES)
RUNNABLE = [name for name in NAMES if make.CASES[name][1] in available_engines()]


def array(data, dtype=np.float32):
    """Values of a golden field."""
    return np.frombuffer(data, dtype=dtype)


def on_disk(golden, directory):
    """Paths of a golden variant's files by role."""
    paths = {role: directory / role for role in golden.files}
    for role, path in paths.items():
        path.write_bytes(golden.files[role])
    return paths


def examples_of(golden):
    """The one batch of a golden variant."""
    return Examples(array(golden.x).reshape(-1, *golden.input_shape), array(golden.y, np.int64))


def test_something_can_be_run_here():
    """Any ONNX Runtime runs the portable variants, so the tests below are never empty."""
    assert {"variant-dense", "variant-conv"} <= set(RUNNABLE)


@pytest.mark.parametrize("name", RUNNABLE)
def test_a_golden_variant_computes_what_torch_computed(name, tmp_path):
    """Logits, the loss before each step, and the parameters after all of them."""
    golden = make.read(name)
    files = VariantFiles(
        *(golden.engine, golden.layout, golden.input_shape, golden.classes, golden.batch, on_disk(golden, tmp_path)),
        recipe=golden.recipe,
    )
    engine = open_engine(files, threads=1)
    engine.set_vector(array(golden.start))
    examples = examples_of(golden)
    np.testing.assert_allclose(engine.predict(examples.x).reshape(-1), array(golden.logits), rtol=0, atol=1e-5)
    assert engine.evaluate(examples).loss == pytest.approx(golden.losses[0], abs=1e-5)
    trained = engine.train(examples, epochs=make.STEPS, learning_rate=make.LEARNING_RATE, rng=np.random.default_rng(0))
    assert trained.steps == make.STEPS
    assert [trained.loss_before, trained.loss_after] == pytest.approx([golden.losses[0], golden.losses[-1]], abs=1e-5)
    np.testing.assert_allclose(engine.vector(), array(golden.end), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", RUNNABLE)
def test_a_trainer_process_makes_the_update_that_torch_would_make(name, tmp_path):
    """A job goes in, an outbox comes out: what it sends and what it keeps are together torch's delta."""
    golden = make.read(name)
    (tmp_path / "weights").write_bytes(encode_weights(array(golden.start), golden.layout, Precision.FP32))
    examples = examples_of(golden)
    np.savez(tmp_path / "examples.npz", x=examples.x, y=examples.y)
    job = Job(
        device="cam-01",
        version=1,
        variant="w1-fp32",
        round=1,
        engine=golden.engine,
        layout=golden.layout,
        input_shape=golden.input_shape,
        classes=golden.classes,
        batch=golden.batch,
        graphs={role: str(path) for role, path in on_disk(golden, tmp_path).items()},
        weights=str(tmp_path / "weights"),
        source=f"npz:{tmp_path / 'examples.npz'}",
        task=Task(make.STEPS, make.LEARNING_RATE, sparsity=0.1, bits=4, fraction=1.0, seed=1),
        outbox=str(tmp_path / "outbox"),
        settled=str(tmp_path / "settled"),
        recipe=golden.recipe,
        personal=str(tmp_path / "personal"),
    )
    command = [sys.executable, "-m", "edgefl.device.trainer", "1"]
    done = subprocess.run(command, input=encode_line(job), capture_output=True, check=True, timeout=60)
    answer = decode_answer(done.stdout)
    assert isinstance(answer, Done), answer
    _, residual = read_residual(tmp_path / "outbox")
    delta = array(residual).copy()
    sent = decode(read_update(tmp_path / "outbox"), len(delta))
    delta[sent.positions] += sent.values
    np.testing.assert_allclose(delta, array(golden.end) - array(golden.start), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_script_still_makes_the_golden_variants(name, tmp_path):
    """Today's exporter declares the same files, inputs and layout, and torch still computes the same numbers."""
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    if make.CASES[name][1] not in available_engines():
        pytest.skip("needs onnxruntime-training-cpu")
    golden, fresh = make.read(name), make.make(name)
    for role, path in on_disk(golden, tmp_path).items():
        if role not in ("checkpoint", "optimizer"):
            assert read_graph(path).inputs == read_graph(_written(tmp_path / "fresh", fresh.files[role])).inputs
    assert set(fresh.files) == set(golden.files)
    for field in ("engine", "layout", "input_shape", "classes", "batch", "recipe", "x", "y", "start"):
        assert getattr(fresh, field) == getattr(golden, field)
    for field in ("logits", "end"):
        np.testing.assert_allclose(array(getattr(fresh, field)), array(getattr(golden, field)), rtol=0, atol=1e-6)
    assert fresh.losses == pytest.approx(golden.losses, abs=1e-6)


def _written(path, data):
    path.write_bytes(data)
    return path
