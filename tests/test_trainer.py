"""The trainer's work: what it writes, what it answers, and how it words what it cannot do. On a real, checked-in variant."""

import hashlib
from pathlib import Path

import msgspec
import numpy as np
import pytest

import make_graphs as make
from edgefl.codec.marks import factors
from edgefl.codec.update import decode as decode_update
from edgefl.codec.weights import Precision, encode_weights
from edgefl.compress.magnitude import pruned
from edgefl.device import coding
from edgefl.device.job import Done, Failed, Held, Job, decode_answer, encode_line
from edgefl.device.trainer import Trainer, answer, serve
from edgefl.engine.curvature import curvature
from edgefl.engine.portable import PortableEngine
from edgefl.errors import EngineError
from edgefl.plan import FleetPruning
from edgefl.rates import smoothness
from edgefl.sources.parse import open_source
from edgefl.store.outbox import read_entry, read_memory, read_residual, read_update
from edgefl.wire.rounds import Task

GOLDEN = make.read("variant-dense")
START = np.frombuffer(GOLDEN.start, dtype=np.float32)
TASK = Task(epochs=2, learning_rate=0.1, sparsity=0.1, bits=4, fraction=1.0, seed=3)


@pytest.fixture
def job(tmp_path):
    """A first round of the golden variant on forty examples."""
    graphs = {}
    for role, data in GOLDEN.files.items():
        (tmp_path / role).write_bytes(data)
        graphs[role] = str(tmp_path / role)
    (tmp_path / "weights").write_bytes(encode_weights(START, GOLDEN.layout, Precision.FP32))
    write_data(tmp_path / "data.npz")
    return Job(
        device="cam-01", version=1, variant="w1-fp32", round=1, engine=GOLDEN.engine, layout=GOLDEN.layout,
        input_shape=GOLDEN.input_shape, classes=GOLDEN.classes, batch=GOLDEN.batch, graphs=graphs,
        weights=str(tmp_path / "weights"), source=f"npz:{tmp_path / 'data.npz'}", task=TASK, outbox=str(tmp_path / "outbox"),
        settled=str(tmp_path / "settled"), recipe=GOLDEN.recipe, personal=str(tmp_path / "personal"),
    )  # fmt: skip


def write_data(path, count=40, **arrays):
    """Examples that have something to learn in them."""
    rng = np.random.default_rng(5)
    y = rng.integers(0, GOLDEN.classes, count)
    x = rng.normal(size=(count, *GOLDEN.input_shape)).astype(np.float32) + y[:, None]
    np.savez(path, **{"x": x, "y": y} | arrays)


def dense(path):
    """What the update in an outbox says, and what was kept."""
    sent = decode_update(read_update(path), GOLDEN.layout.size).dense()
    return sent, np.frombuffer(read_residual(path)[1], "<f4")


def test_sent_and_kept_are_the_whole_delta(job):
    """The update and its residual add up to the parameters after training, less those before it."""
    everything = msgspec.structs.replace(job.task, sparsity=1.0, bits=8)
    Trainer(1).run(msgspec.structs.replace(job, task=everything))
    whole = sum(dense(Path(job.outbox)))
    done = Trainer(1).run(job)
    sent, kept = dense(Path(job.outbox))
    np.testing.assert_allclose(sent + kept, whole, atol=1e-6)
    assert 0 < np.count_nonzero(sent) < len(sent) / 5
    entry = read_entry(Path(job.outbox))
    assert (entry.round, entry.samples, entry.sha256) == (1, 40, done.sha256)
    assert entry.loss_after < entry.loss_before


def test_the_same_job_gives_the_same_bytes_in_a_warm_and_a_cold_trainer(job):
    """An engine that has trained before leaves no trace in the next round; another round differs."""
    warm = Trainer(1)
    first = warm.run(job).sha256
    warm.run(msgspec.structs.replace(job, round=2))
    assert warm.run(job).sha256 == first == Trainer(1).run(job).sha256
    assert warm.run(msgspec.structs.replace(job, device="cam-02")).sha256 != first


def test_a_residual_counts_only_for_its_own_version_variant_and_layout(job, tmp_path):
    """The last residual goes into the next round of the same version; anybody else's is left out."""
    first = Trainer(1).run(job)
    (tmp_path / "outbox").rename(tmp_path / "settled")
    kept = np.frombuffer(read_residual(tmp_path / "settled")[1], "<f4")
    again = msgspec.structs.replace(job, settled=str(tmp_path / "none"))
    Trainer(1).run(again)
    without = sum(dense(tmp_path / "outbox"))
    Trainer(1).run(job)
    np.testing.assert_allclose(sum(dense(tmp_path / "outbox")), without + kept, atol=1e-6)
    for changed in ({"version": 2}, {"variant": "w0.5-fp32"}):
        assert Trainer(1).run(msgspec.structs.replace(job, **changed)).sha256 == first.sha256


def settle(tmp_path):
    """The server has stored the update."""
    (tmp_path / "outbox").rename(tmp_path / "settled")


def test_the_velocity_goes_from_round_to_round(job, tmp_path):
    """With momentum correction the memory of both vectors is what the codec makes of the deltas, one after the other."""
    corrected = msgspec.structs.replace(job, task=msgspec.structs.replace(job.task, correction=0.5))
    deltas, memory = [], None
    for number in (1, 2, 3):
        learning = msgspec.structs.replace(corrected, round=number)
        whole = msgspec.structs.replace(job.task, sparsity=1.0, bits=8)
        away = {"settled": str(tmp_path / "none"), "outbox": str(tmp_path / "whole"), "round": number, "task": whole}
        Trainer(1).run(msgspec.structs.replace(job, **away))
        deltas.append(sum(dense(tmp_path / "whole")))
        Trainer(1).run(learning)
        memory = read_memory(tmp_path / "outbox")
        settle(tmp_path)
    velocity = np.frombuffer(memory[2], "<f4")
    sent = decode_update(read_update(tmp_path / "settled"), GOLDEN.layout.size).dense()
    assert not velocity[sent != 0].any()
    quiet = sent == 0
    first = decode_update(read_update(tmp_path / "settled"), GOLDEN.layout.size)
    assert first.size == len(velocity)
    recent = 0.5 * (0.5 * deltas[0] + deltas[1]) + deltas[2]
    untouched = quiet & np.isclose(velocity, recent, atol=1e-5)
    assert untouched.sum() > 0.6 * quiet.sum()  # the others were sent in an earlier round, and their velocity began anew


def test_a_memory_without_velocity_is_taken_up_by_a_plan_with_correction(job, tmp_path):
    """The residual of plain rounds goes on when correction begins, and the velocity is dropped when it ends."""
    Trainer(1).run(job)
    settle(tmp_path)
    assert read_memory(tmp_path / "settled")[2] == b""
    Trainer(1).run(msgspec.structs.replace(job, round=2, task=msgspec.structs.replace(job.task, correction=0.9)))
    settle(tmp_path)
    assert len(read_memory(tmp_path / "settled")[2]) == 4 * GOLDEN.layout.size
    Trainer(1).run(msgspec.structs.replace(job, round=3))
    assert read_memory(tmp_path / "outbox")[2] == b""


def held(path, vector, number=0):
    """A weights file, as the agent names it."""
    data = encode_weights(vector.astype(np.float32), GOLDEN.layout, Precision.FP32)
    path.write_bytes(data)
    return Held(path=str(path), sha256=hashlib.sha256(data).digest(), round=number)


@pytest.fixture
def histories(monkeypatch):
    """What each update was coded with."""
    seen = []
    real = coding.compress
    monkeypatch.setattr(coding, "compress", lambda *a, **k: seen.append(k["history"]) or real(*a, **k))
    return seen


def test_the_history_is_what_the_job_names(job, tmp_path, histories):
    """Start, before and now come from the named files; without an earlier one the version's own weights take its place."""
    start, before = held(tmp_path / "w0", START * 0.5), held(tmp_path / "w3", START * 0.75, 3)
    context = msgspec.structs.replace(job, round=4, start=start, task=msgspec.structs.replace(job.task, context=True))
    Trainer(1).run(context)
    Trainer(1).run(msgspec.structs.replace(context, before=before))
    Trainer(1).run(msgspec.structs.replace(context, task=job.task))
    Trainer(1).run(msgspec.structs.replace(context, start=None, before=before))
    alone, both, *plain = histories
    assert plain == [None, None]
    np.testing.assert_array_equal(alone.before, (START * 0.5).astype(np.float32))
    np.testing.assert_array_equal(both.before, (START * 0.75).astype(np.float32))
    for history in (alone, both):
        np.testing.assert_array_equal(history.now, START)
        assert history.shapes == tuple(tensor.shape for tensor in GOLDEN.layout.tensors)


@pytest.mark.parametrize("spoil", [lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:-4] + b"\0\0\0\1")])
def test_an_earlier_file_that_is_not_the_servers_is_not_used(job, tmp_path, histories, spoil):
    """A file that is gone or damaged falls back to the version's own weights, and if these are gone to plain coding."""
    start, before = held(tmp_path / "w0", START * 0.5), held(tmp_path / "w3", START * 0.75, 3)
    task = msgspec.structs.replace(job.task, context=True)
    context = msgspec.structs.replace(job, round=4, start=start, before=before, task=task)
    spoil(tmp_path / "w3")
    Trainer(1).run(context)
    assert read_entry(tmp_path / "outbox").before == 0
    spoil(tmp_path / "w0")
    Trainer(1).run(context)
    np.testing.assert_array_equal(histories[0].before, histories[0].start)
    assert histories[1] is None


def test_the_outbox_says_what_the_delta_started_from(job, tmp_path):
    """The next job finds in it which file to keep."""
    Trainer(1).run(msgspec.structs.replace(job, weights_sha256=bytes(range(32))))
    assert read_entry(tmp_path / "outbox").weights == bytes(range(32))


def test_the_tasks_weights_reach_the_engine(job):
    """A weight that the version's graphs do not have is an error that says so, not a round trained with another loss."""
    for task, words in (({"mutual": 0.5}, "found the weight 0.5"), ({"proximal": 0.5}, "found 0.5")):
        with pytest.raises(EngineError, match=words):
            Trainer(1).run(msgspec.structs.replace(job, task=msgspec.structs.replace(job.task, **task)))


def rates(monkeypatch):
    """The rates with which the engine was trained, the probe's included."""
    seen = []
    real = PortableEngine.train

    def train(self, *args, **kwargs):
        seen.append(kwargs["learning_rate"])
        return real(self, *args, **kwargs)

    monkeypatch.setattr(PortableEngine, "train", train)
    return seen


def test_the_rate_follows_the_loss_of_the_last_training(job, tmp_path, monkeypatch):
    """A device whose settled loss lies above the mean takes larger steps; without one it takes the task's."""
    seen = rates(monkeypatch)
    Trainer(1).run(job)
    settle(tmp_path)
    own = read_entry(tmp_path / "settled").loss_after
    task = msgspec.structs.replace(job.task, rate="loss", loss=own / 1.5)
    Trainer(1).run(msgspec.structs.replace(job, task=task))
    Trainer(1).run(msgspec.structs.replace(job, task=task, version=2))
    assert seen == [0.1, pytest.approx(0.15), 0.1]


def test_the_curvature_limits_the_rate_and_the_probe_leaves_no_trace(job, monkeypatch):
    """Two short steps on one batch tell how sharp the loss is: a small rate stays, a huge one is cut, no more changes."""
    seen = rates(monkeypatch)
    for base in (1e-3, 50.0):
        task = msgspec.structs.replace(job.task, rate="curvature", learning_rate=base)
        Trainer(1).run(msgspec.structs.replace(job, task=task))
    assert seen[:3] == [1e-3 / 64, 1e-3 / 64, 1e-3]
    assert seen[3:5] == [50.0 / 64] * 2
    assert 50.0 / 64 <= seen[5] < 10.0
    small = msgspec.structs.replace(job.task, learning_rate=1e-3)
    probed = Trainer(1).run(msgspec.structs.replace(job, task=msgspec.structs.replace(small, rate="curvature"))).sha256
    assert probed == Trainer(1).run(msgspec.structs.replace(job, task=small)).sha256


def test_the_curvature_of_a_step_that_is_no_gradient_is_refused(job):
    """An optimiser with a memory gives no gradients."""
    engine = PortableEngine.__new__(PortableEngine)  # it is not even asked
    with pytest.raises(EngineError, match="plain SGD only"):
        curvature(engine, msgspec.structs.replace(job.recipe, optimizer="adamw"), START, None, 0.1, kept=None)


def thin():
    """The golden weights, of which half of the prunable ones are gone."""
    return pruned(START, GOLDEN.layout, FleetPruning(target=0.5, share=1.0, first=1))


def test_the_curvature_is_that_of_the_weights_that_are_left(job):
    """It is the smoothness between two gradients of a pruned model in which what is gone counts for nothing."""
    engine, start, left, short = Trainer(1)._open(job), thin(), factors(thin(), GOLDEN.layout), 0.1 / 64
    batch = open_source(job.source).load().take(np.arange(job.batch))
    points = [start]
    for _ in range(2):  # unmasked steps, of which numpy takes what is left
        engine.set_vector(points[-1])
        engine.train(batch, epochs=1, learning_rate=short, rng=np.random.default_rng(0))
        points.append(points[-1] + (engine.vector() - points[-1]) * left)
    wanted = smoothness(*points, short)
    found, whole = (curvature(engine, job.recipe, start, batch, 0.1, kept=kept) for kept in (left, None))
    assert found == pytest.approx(wanted, rel=1e-3)
    assert abs(whole - wanted) > 0.02 * wanted, "the test can tell them apart"


def test_a_probe_moves_what_the_training_moves(job, tmp_path, monkeypatch):
    """Two steps of the probe and the training itself leave out the same weights, those that are gone from the weights file."""
    seen = []
    real = PortableEngine.train
    monkeypatch.setattr(PortableEngine, "train", lambda *a, **k: seen.append(k["kept"]) or real(*a, **k))
    held(tmp_path / "weights", thin())
    Trainer(1).run(msgspec.structs.replace(job, task=msgspec.structs.replace(job.task, rate="curvature")))
    assert len(seen) == 3
    for kept in seen:
        np.testing.assert_array_equal(kept, factors(thin(), GOLDEN.layout))


@pytest.mark.parametrize(
    ("words", "fault", "spoil"),
    [
        ("no examples|does not exist|cannot be found|missing", "input", lambda d: (d / "data.npz").unlink()),
        ("cannot be read as a numpy archive", "input", lambda d: (d / "data.npz").write_bytes(b"PK\x03\x04 torn")),
        ("does not fit the model", "input", lambda d: write_data(d / "data.npz", x=np.zeros((40, 5), np.float32))),
        ("label out of range", "input", lambda d: write_data(d / "data.npz", y=np.full(40, 9))),
        ("NaN or infinite", "input", lambda d: write_data(d / "data.npz", x=np.full((40, 6), np.nan, np.float32))),
        ("weights file has a wrong length", "peer", lambda d: (d / "weights").write_bytes((d / "weights").read_bytes()[:-1])),
        ("reading or writing failed", "machine", lambda d: (d / "weights").unlink()),
        ("graph train", "machine", lambda d: (d / "train").write_bytes(b"\x08\x07 not a graph")),
        ("graph train", "machine", lambda d: (d / "train").unlink()),
        ("cannot write", "machine", lambda d: (d / "outbox").mkdir() or (d / "outbox" / "x").touch()),
    ],
)
def test_what_cannot_be_done_is_said_and_the_next_job_works(job, tmp_path, words, fault, spoil):
    """Each obstacle has its words and its family, leaves no outbox, and is no obstacle any more once it is gone."""
    intact = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    trainer = Trainer(1)
    spoil(tmp_path)
    failed = answer(trainer, job)
    assert isinstance(failed, Failed)
    assert failed.fault == fault
    assert any(word in failed.reason for word in words.split("|")), failed.reason
    assert read_entry(tmp_path / "outbox") is None
    if (tmp_path / "outbox").is_dir():
        (tmp_path / "outbox" / "x").unlink()
        (tmp_path / "outbox").rmdir()
    for name, data in intact.items():
        (tmp_path / name).write_bytes(data)
    assert isinstance(answer(trainer, job), Done)


def test_training_that_diverges_leaves_no_update(job, tmp_path):
    """A learning rate far too high is an error with a remedy, not an update of NaN."""
    rate = msgspec.structs.replace(job.task, learning_rate=100.0, epochs=60)
    write_data(tmp_path / "data.npz", x=np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32) * 1e18)
    failed = answer(Trainer(1), msgspec.structs.replace(job, task=rate))
    assert isinstance(failed, Failed)
    assert "diverged" in failed.reason
    assert not (tmp_path / "outbox").exists()


def test_memory_that_runs_out_is_worded_and_given_back(job, monkeypatch):
    """An allocation that fails says what to do; the engine goes, and the next job opens it anew."""
    trainer = Trainer(1)
    assert isinstance(answer(trainer, job), Done)
    with monkeypatch.context() as patched:
        patched.setattr("edgefl.device.coding.compress", lambda *_, **__: np.empty(1 << 60, dtype=np.uint8))
        failed = answer(trainer, job)
    assert "more memory" in failed.reason
    assert trainer._engine is None
    assert isinstance(answer(trainer, job), Done)


def test_jobs_are_answered_line_by_line_until_the_input_ends(job):
    """Each line gets one line; what stands in a job survives the way through it."""
    lines, answers = [encode_line(job), encode_line(msgspec.structs.replace(job, round=2)), b""], []
    serve(iter(lines).__next__, answers.append, Trainer(1))
    assert [decode_answer(line).round for line in answers] == [1, 2]
    assert all(line.endswith(b"\n") for line in answers)
