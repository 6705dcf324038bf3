"""Fit is proved: variants are run by the board's own trainer, within the board's limits, before they are announced."""

import os
from contextlib import closing
from dataclasses import replace

import msgspec
import numpy as np
import pytest

import make_graphs as make
from edgefl.codec.weights import Precision, encode_weights
from edgefl.engine.runtime import available_engines
from edgefl.errors import EngineError, FitError
from edgefl.examples import Examples
from edgefl.profile import Profile
from edgefl.server import rehearsal
from edgefl.server.rehearsal import Measured, Rehearsals, Subject, rows_for, this_machine
from edgefl.store.blobs import BlobStore
from edgefl.wire.blocks import file_ref

MIB = 1 << 20


def board(name="pi", memory_mb=256, **changes):
    """A profile that allows the trainer so many MiB."""
    fields = {
        "name": name, "title": "a board", "soc": "a chip", "architecture": "x86_64", "cores": 64, "ram_mb": 4096,
        "storage_kib": 16384, "memory_mb": memory_mb, "threads": 1, "link_kbps": 1000, "engine": "portable",
        "sources": ("a data sheet; slowdown measured",),
    }  # fmt: skip
    return Profile(**fields | changes)


@pytest.fixture
def blobs(tmp_path):
    """An empty store."""
    return BlobStore(tmp_path / "blobs")


def subject(blobs, kind="variant-conv", spoilt=None):
    """A variant whose graphs are checked in, in the store; `spoilt` is a role whose content is nonsense."""
    golden = make.read(kind)
    weights = encode_weights(np.frombuffer(golden.start, np.float32), golden.layout, Precision.FP32)
    contents = {**golden.files, "weights": weights} | ({spoilt: b"nonsense"} if spoilt else {})
    for data in contents.values():
        blobs.put(data)
    rows, rng = rows_for(golden.batch), np.random.default_rng(0)
    x = rng.standard_normal((rows, *golden.input_shape)).astype(np.float32)
    return Subject(
        "w1-fp32", golden.engine, golden.layout, golden.input_shape, golden.classes, golden.batch, golden.recipe,
        tuple(file_ref(role, data) for role, data in contents.items()), Examples(x, rng.integers(0, golden.classes, rows)),
    )  # fmt: skip


def test_the_trainer_says_what_a_variant_takes(blobs):
    """Peak and step time come from a real process with the profile's threads, and the result says where they were measured."""
    here = len(os.sched_getaffinity(0))
    fit = Rehearsals(blobs).prove(subject(blobs), board(memory_mb=300, threads=64))
    assert 30 * MIB < fit.peak_bytes < 200 * MIB
    assert 0.0 < fit.step_ms < 10_000.0
    assert fit.memory_mb == 300
    assert fit.threads == min(64, here)
    assert fit.machine == this_machine()
    assert "ONNX Runtime" in fit.machine


def test_too_much_memory_is_refused_although_the_files_are_small(blobs):
    """A trainer that takes more than the profile allows is ended, and the error says how much was allowed and found."""
    small = subject(blobs)
    assert sum(ref.length for ref in small.files) < 100_000
    with pytest.raises(FitError) as raised:
        Rehearsals(blobs).prove(small, board(name="tiny", memory_mb=40))
    assert "tiny" in raised.value.problem
    assert raised.value.expected == "a trainer of at most 40 MiB"
    assert int(raised.value.found.split()[0]) >= 40
    assert raised.value.remedy


def test_profiles_with_the_same_variant_share_a_rehearsal(blobs, monkeypatch):
    """One process serves all of them; each is judged by its own limit; other threads are another rehearsal."""
    ran = []

    def measured(subject, _, *, threads, **limits):
        assert limits == {"memory_mb": 256, "who": "pi"}
        ran.append((subject.name, threads))
        return Measured(90 * MIB, 0.010)

    monkeypatch.setattr(rehearsal, "rehearse", measured)
    monkeypatch.setattr(rehearsal.os, "sched_getaffinity", lambda _: {0, 1})
    rehearsals, one = Rehearsals(blobs), subject(blobs)
    first = rehearsals.prove(one, board(memory_mb=256))
    second = rehearsals.prove(one, board(memory_mb=90))
    assert (first.peak_bytes, first.memory_mb, second.memory_mb) == (90 * MIB, 256, 90)
    with pytest.raises(FitError):
        rehearsals.prove(one, board(memory_mb=89))
    assert ran == [("w1-fp32", 1)]
    rehearsals.prove(one, board(threads=2))
    rehearsals.prove(one, board(threads=3))
    rehearsals.prove(replace(one, name="w0.5-fp32"), board())
    assert ran[1:] == [("w1-fp32", 2), ("w0.5-fp32", 1)]


def test_a_step_that_is_too_long_on_the_board_is_refused(blobs, monkeypatch):
    """The limit counts on the board: the time here, times how much slower the board was measured to be."""
    monkeypatch.setattr(rehearsal, "rehearse", lambda *_, **__: Measured(MIB, 0.010))
    rehearsals, one = Rehearsals(blobs), subject(blobs)
    assert rehearsals.prove(one, board(step_ms=200.0, slowdown=20.0)).step_ms == 10.0
    with pytest.raises(FitError, match="too slowly") as raised:
        rehearsals.prove(one, board(step_ms=199.0, slowdown=20.0))
    assert "10 ms here, 20 times slower there" in raised.value.found


@pytest.mark.parametrize("role", ["golden", "train", "eval"])
def test_what_fails_in_the_trainer_is_not_announced(blobs, role):
    """A variant that its own trial or round refuses is an error that repeats what the trainer said."""
    with pytest.raises(EngineError, match="fails in the board's trainer") as raised:
        rehearsal.rehearse(subject(blobs, spoilt=role), blobs, threads=1, memory_mb=512, who="pi")
    assert raised.value.found


@pytest.mark.skipif("ort-training" not in available_engines(), reason="needs onnxruntime-training")
def test_the_other_engine_is_rehearsed_too(blobs):
    """Variants of ort-training are run by the same trainer."""
    found = rehearsal.rehearse(subject(blobs, "variant-dense-native"), blobs, threads=1, memory_mb=512, who="pc")
    assert found.peak_bytes > 30 * MIB
    assert found.step_seconds > 0.0


@pytest.mark.slow
def test_a_push_refuses_what_does_not_fit_the_memory_and_records_what_does(tmp_path):
    """A batch whose activations do not fit leaves no version; the same model with a small batch is recorded with its figures."""
    pytest.importorskip("torch")
    from edgefl.server.founding import create_fleet
    from edgefl.server.push import PushRequest, push
    from edgefl.server.status import fleet_status
    from edgefl.store.database import open_database
    from edgefl.store.versions import get_variant

    fleet = create_fleet(tmp_path / "fleet", name="test")
    boards = (board(memory_mb=88),)
    with pytest.raises(FitError, match="fits the storage of profile pi but not its memory"):
        push(fleet, PushRequest(model="digits", source="mnist-2nn", batch=4096), boards, now=1.7e9)
    with closing(open_database(fleet.database)) as database:
        assert database.execute("SELECT COUNT(*) FROM versions").fetchone()[0] == 0
    (pushed,) = push(fleet, PushRequest(model="digits", source="mnist-2nn", batch=10), boards, now=1.7e9)
    with closing(open_database(fleet.database)) as database:
        fit = get_variant(database, "digits", "pi", 1).manifest.fit
        (status,) = fleet_status(database, "test").variants
    assert 50 * MIB < fit.peak_bytes <= 88 * MIB
    assert (fit.memory_mb, fit.threads) == (88, 1)
    assert (status.peak_bytes, status.step_ms) == (fit.peak_bytes, fit.step_ms) == (pushed.peak_bytes, pushed.step_ms)
    assert msgspec.json.encode(status)
