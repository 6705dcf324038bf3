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
from edgefl.plan import JumpStart, Plan
from edgefl.profile import Profile
from edgefl.server import rehearsal
from edgefl.server.rehearsal import Measured, Rehearsals, Subject, ceiling, fit_of, rows_for, this_machine
from edgefl.store.blobs import BlobStore
from edgefl.wire.blocks import file_ref
from edgefl.wire.tasks import task_of

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
    here, profile = len(os.sched_getaffinity(0)), board(memory_mb=300, threads=64)
    found = Rehearsals(blobs).run(subject(blobs), profile)
    fit = fit_of(found, profile)
    assert not found.ended
    assert 30 * MIB < fit.peak_bytes < 200 * MIB
    assert 0.0 < fit.step_ms < 10_000.0
    assert fit.memory_mb == 300
    assert fit.threads == min(64, here)
    assert fit.machine == this_machine()
    assert "ONNX Runtime" in fit.machine


def test_what_is_rehearsed_is_the_most_that_a_plan_may_ask_for(blobs, monkeypatch):
    """The round sends all of its update as finely as a race does, with history and momentum."""
    run, jobs = rehearsal._run, []
    monkeypatch.setattr(rehearsal, "_run", lambda process, job: (jobs.append(job), run(process, job))[1])
    rehearsal.rehearse(subject(blobs), blobs, threads=1, memory_mb=512)
    race = task_of(Plan(jump_start=JumpStart(), correction=0.9), 1)
    asked = jobs[-1].task
    assert (asked.sparsity, asked.bits, asked.context) == (race.sparsity, race.bits, race.context) == (1.0, 8, True)
    assert asked.correction == race.correction


def test_too_much_memory_is_measured_although_the_files_are_small(blobs):
    """A trainer may take more than the profile allows, so that it is known how much; at the ceiling it is ended."""
    small = subject(blobs)
    assert sum(ref.length for ref in small.files) < 100_000
    found = Rehearsals(blobs).run(small, board(name="tiny", memory_mb=40))
    assert found.peak_bytes > 40 * MIB
    assert found.step_seconds > 0.0
    ended = rehearsal.rehearse(small, blobs, threads=1, memory_mb=40)
    assert ended.ended
    assert 40 * MIB < ended.peak_bytes <= found.peak_bytes + 20 * MIB
    assert (ceiling(40), ceiling(256), ceiling(512), ceiling(2048)) == (160, 1024, 1024, 2048)


def test_profiles_with_the_same_variant_share_a_rehearsal(blobs, monkeypatch):
    """One process serves all of them; other threads are another rehearsal; a bound is measured again where it says too little."""
    ran = []

    def measured(subject, _, *, threads, memory_mb):
        ran.append((subject.name, threads, memory_mb))
        return Measured(memory_mb * MIB + 1, 0.0, ended=True) if memory_mb < 1500 else Measured(1600 * MIB, 0.010)

    monkeypatch.setattr(rehearsal, "rehearse", measured)
    monkeypatch.setattr(rehearsal.os, "sched_getaffinity", lambda _: {0, 1})
    rehearsals, one = Rehearsals(blobs), subject(blobs)
    assert rehearsals.run(one, board(memory_mb=100)).peak_bytes == 400 * MIB + 1
    assert rehearsals.run(one, board(memory_mb=90)).ended
    assert rehearsals.run(one, board(memory_mb=399)).ended
    assert ran == [("w1-fp32", 1, 400)]
    assert rehearsals.run(one, board(memory_mb=2000)) == Measured(1600 * MIB, 0.010)
    assert rehearsals.run(one, board(memory_mb=100)) == Measured(1600 * MIB, 0.010)
    rehearsals.run(one, board(memory_mb=2000, threads=2))
    rehearsals.run(one, board(memory_mb=2000, threads=3))
    rehearsals.run(replace(one, name="w0.5-fp32"), board(memory_mb=2000))
    assert ran[1:] == [("w1-fp32", 1, 2000), ("w1-fp32", 2, 2000), ("w0.5-fp32", 1, 2000)]


@pytest.mark.parametrize("role", ["golden", "train", "eval"])
def test_what_fails_in_the_trainer_is_not_announced(blobs, role):
    """A variant that its own trial or round refuses is an error that repeats what the trainer said."""
    with pytest.raises(EngineError, match="fails in the board's trainer") as raised:
        rehearsal.rehearse(subject(blobs, spoilt=role), blobs, threads=1, memory_mb=512)
    assert raised.value.found


@pytest.mark.skipif("ort-training" not in available_engines(), reason="needs onnxruntime-training")
def test_the_other_engine_is_rehearsed_too(blobs):
    """Variants of ort-training are run by the same trainer."""
    found = rehearsal.rehearse(subject(blobs, "variant-dense-native"), blobs, threads=1, memory_mb=512)
    assert found.peak_bytes > 30 * MIB
    assert found.step_seconds > 0.0


@pytest.mark.slow
def test_a_push_steps_down_to_what_trains_within_the_memory(tmp_path):
    """With some MiB less than the widest took, a narrower one is proved; the push says what was run and what it took."""
    pytest.importorskip("torch")
    from edgefl.server.explained import COLUMNS, table
    from edgefl.server.founding import create_fleet
    from edgefl.server.push import PushRequest, push

    fleet, request = create_fleet(tmp_path / "fleet", name="test"), PushRequest("digits", "mnist-2nn", batch=4096)
    said, explained = [], []
    (wide,) = push(fleet, request, (board(memory_mb=1000),), now=1.7e9)
    limit = (wide.peak_bytes >> 20) - 10
    (pushed,) = push(fleet, request, (board(memory_mb=limit),), now=1.7e9, on_progress=said.append, on_planned=explained.append)
    assert wide.variant == "w1-fp32"
    assert pushed.width < 1.0
    assert pushed.peak_bytes <= limit * MIB < wide.peak_bytes
    assert any(line.startswith("w1-fp32 is too much for pi (memory): ") for line in said)
    (refused,) = [row for row in explained[0].refused if row.variant == "w1-fp32"]
    assert refused.run
    assert refused.memory > limit * MIB
    (row,) = [row for row in table(explained[0]) if row[1] == "w1-fp32"]
    assert row[0] == "x"
    assert row[COLUMNS.index("memory")] == f"{refused.memory / MIB:.0f} MiB"
    assert row[COLUMNS.index("exceeds")].startswith("memory by ")


@pytest.mark.slow
def test_a_push_records_what_fits_and_refuses_what_does_not(tmp_path):
    """What no width can do for a board's memory leaves no version and says what was run; else figures are recorded."""
    pytest.importorskip("torch")
    from edgefl.server.founding import create_fleet
    from edgefl.server.push import PushRequest, push
    from edgefl.server.status import fleet_status
    from edgefl.store.database import open_database
    from edgefl.store.versions import get_variant

    fleet = create_fleet(tmp_path / "fleet", name="test")
    request = PushRequest(model="digits", source="mnist-2nn", batch=10)
    with pytest.raises(FitError, match="cannot be trained on profile pi even as") as raised:
        push(fleet, request, (board(memory_mb=45, storage_kib=9999),), now=1.7e9)
    assert "MiB" in raised.value.found
    with closing(open_database(fleet.database)) as database:
        assert database.execute("SELECT COUNT(*) FROM versions").fetchone()[0] == 0
    (pushed,) = push(fleet, request, (board(memory_mb=88),), now=1.7e9)
    with closing(open_database(fleet.database)) as database:
        fit = get_variant(database, "digits", "pi", 1).manifest.fit
        (status,) = fleet_status(database, "test").variants
    assert 50 * MIB < fit.peak_bytes <= 88 * MIB
    assert (fit.memory_mb, fit.threads) == (88, 1)
    assert (status.peak_bytes, status.step_ms) == (fit.peak_bytes, fit.step_ms) == (pushed.peak_bytes, pushed.step_ms)
    assert msgspec.json.encode(status)
