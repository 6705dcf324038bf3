"""A version's trial: what it finds, what the trainer process makes of it, and what a device does with a version that fails."""

import os
import signal
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest

import make_graphs
import toyboard as toy
from edgefl.codec.golden import decode_golden, encode_golden, farthest, golden_inputs, golden_length
from edgefl.codec.weights import Precision, encode_weights
from edgefl.device.job import Done, Job, Side, TrialJob
from edgefl.device.training import TrainerProcess
from edgefl.device.trial import try_out
from edgefl.engine.contract import VariantFiles
from edgefl.engine.open import open_engine
from edgefl.errors import MessageError, ModelError
from edgefl.store.model_state import TrialRecord
from edgefl.wire.releases import Health
from edgefl.wire.rounds import Task

VARIANT = make_graphs.read("variant-dense")
START = np.frombuffer(VARIANT.start, dtype=np.float32)


def outputs(vector, inputs):
    """What the variant gives."""
    with tempfile.TemporaryDirectory() as directory:
        paths = {role: Path(directory) / role for role in VARIANT.files}
        for role, path in paths.items():
            path.write_bytes(VARIANT.files[role])
        v = VARIANT
        engine = open_engine(VariantFiles(v.engine, v.layout, v.input_shape, v.classes, v.batch, paths, v.recipe), threads=1)
        engine.set_vector(vector)
        return engine.predict(inputs)


def contents(vector=START, change=""):
    """Files of a version by role, one of them changed."""
    inputs = golden_inputs(VARIANT.input_shape, VARIANT.classes)
    golden = encode_golden(inputs, outputs(vector, inputs))
    weights = encode_weights(vector, VARIANT.layout, Precision.FP32)
    files = {**VARIANT.files, "golden": golden, "weights": weights}
    if change == "golden":
        files["golden"] = encode_golden(inputs, outputs(vector, inputs) + 0.1)
    elif change == "torn golden":
        files["golden"] = golden[:-1]
    elif change == "nan":
        files["weights"] = weights[:-4] + np.float32("nan").tobytes()
    elif change:
        files[change] = VARIANT.files[change][: len(VARIANT.files[change]) // 2]
    return files


def data_for(path, vector):
    """Examples that a version with this vector answers all right."""
    x = np.random.default_rng(3).normal(size=(60, *VARIANT.input_shape)).astype(np.float32)
    np.savez(path, x=x, y=outputs(vector, x).argmax(1))


def side(root, files, version):
    """A version on disk."""
    root.mkdir()
    for role, data in files.items():
        (root / role).write_bytes(data)
    graphs = {role: str(root / role) for role in VARIANT.files}
    return Side(
        version=version, engine=VARIANT.engine, layout=VARIANT.layout, input_shape=VARIANT.input_shape, classes=VARIANT.classes,
        batch=VARIANT.batch, graphs=graphs, weights=str(root / "weights"), recipe=VARIANT.recipe,
    )  # fmt: skip


def trial(root, change="", *, vector=START, before=None, **health):
    """A trial of version 2; `before` is the vector of version 1."""
    data_for(root / "data.npz", START)
    golden = str(root / "new" / "golden")
    return TrialJob(
        candidate=side(root / "new", contents(vector, change), 2),
        before=None if before is None else side(root / "old", contents(before), 1),
        golden=golden, source=f"npz:{root / 'data.npz'}", health=Health(**health), personal=str(root / "personal"),
    )  # fmt: skip


def judge(job):
    """The verdict, in this process."""
    return try_out(job, partial(open_engine, threads=1))


def test_a_good_version_passes_and_is_measured(tmp_path):
    """Nothing is wrong, and the accuracy of both versions on the device's own data is told."""
    verdict = judge(trial(tmp_path, before=-START, drop=0.05))
    assert (verdict.code, verdict.version, verdict.accuracy) == ("", 2, 1.0)
    assert verdict.before < 0.5


def test_a_version_that_is_only_served_takes_no_step(tmp_path):
    """It has no training graph, and needs none to pass; wrong outputs fail it as any other."""
    job = trial(tmp_path)
    graphs = {role: path for role, path in job.candidate.graphs.items() if role != "train"}
    served = msgspec.structs.replace(job.candidate, graphs=graphs, engine="inference")
    assert judge(msgspec.structs.replace(job, candidate=served)).code == ""
    assert judge(msgspec.structs.replace(job, candidate=msgspec.structs.replace(served, engine="portable"))).code == "trial-load"
    weights = tmp_path / "new" / "weights"
    weights.write_bytes(encode_weights(START * np.float32(1.5), VARIANT.layout, Precision.FP32))
    assert judge(msgspec.structs.replace(job, candidate=served)).code == "trial-golden"


def test_the_native_engine_is_tried_alike(tmp_path, monkeypatch):
    """A variant of the training build passes and fails as a portable one does."""
    pytest.importorskip("onnxruntime.training")
    native = make_graphs.read("variant-dense-native")
    monkeypatch.setattr(sys.modules[__name__], "VARIANT", native)
    start = np.frombuffer(native.start, dtype=np.float32)
    (tmp_path / "good").mkdir()
    verdict = judge(trial(tmp_path / "good", vector=start, before=start, drop=0.5))
    assert (verdict.code, verdict.accuracy) == ("", verdict.before)
    (tmp_path / "bad").mkdir()
    assert judge(trial(tmp_path / "bad", "golden", vector=start)).code == "trial-golden"


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ("golden", "trial-golden", "times what is allowed"),
        ("torn golden", "trial-golden", "does not belong"),
        ("nan", "trial-load", "NaN"),
        ("infer", "trial-load", ""),
        ("eval", "trial-load", ""),
        ("train", "trial-load", ""),
    ],
)
def test_each_file_that_is_wrong_is_found(tmp_path, change, code, words):
    """Whichever file is not what it should be, the trial fails and says what it was."""
    verdict = judge(trial(tmp_path, change))
    assert verdict.code == code
    assert words in verdict.reason


def test_outputs_that_are_not_finite_fail(tmp_path):
    """Weights that are finite but so large that the outputs are not: neither golden outputs nor a loss come of them."""
    huge = np.full_like(START, 3e38)
    with pytest.raises(ModelError, match="NaN or infinite"):
        encode_golden(golden_inputs(VARIANT.input_shape, VARIANT.classes), np.full((4, 3), np.nan, np.float32))
    job = trial(tmp_path)
    Path(job.candidate.weights).write_bytes(encode_weights(huge, VARIANT.layout, Precision.FP32))
    assert judge(job).code == "trial-golden"
    assert judge(msgspec.structs.replace(job, golden="")).code == "trial-metric"


@pytest.mark.parametrize(("drop", "code"), [(0.1, "trial-metric"), (0.99, ""), (1.0, "")])
def test_a_version_that_is_worse_than_before_fails_if_the_floor_says_so(tmp_path, drop, code):
    """The floor is what the version before reaches on the same data, less the drop that is allowed; 1 leaves it out."""
    verdict = judge(trial(tmp_path, vector=-START, before=START, drop=drop))
    assert verdict.code == code
    assert (verdict.before is None) == (drop == 1.0)


def test_what_cannot_be_asked_is_not_held_against_the_version(tmp_path):
    """Without examples, without a golden file, or with a version before that is damaged, the rest of the trial counts."""
    job = trial(tmp_path, before=START, drop=0.0)
    (tmp_path / "old" / "eval").unlink()
    assert judge(job).code == ""
    (tmp_path / "data.npz").unlink()
    verdict = judge(msgspec.structs.replace(job, golden=""))
    assert (verdict.code, verdict.accuracy, verdict.before) == ("", None, None)


def test_golden_files_are_small_repeatable_and_checked():
    """The same inputs every time, as long as was said, also for large images; a file of another model is refused."""
    for shape, classes in (((6,), 3), ((3, 96, 96), 10), ((1, 28, 28), 100)):
        inputs = golden_inputs(shape, classes)
        np.testing.assert_array_equal(inputs, golden_inputs(shape, classes))
        wanted = np.arange(len(inputs) * classes, dtype=np.float32).reshape(len(inputs), classes)
        data = encode_golden(inputs, wanted)
        assert len(data) == golden_length(shape, classes) <= max(32 * 1024 + 16, np.prod(shape) + 4 * classes + 16)
        read = decode_golden(data, shape, classes)
        np.testing.assert_array_equal(read[0], inputs)
        np.testing.assert_array_equal(read[1], wanted)
        for wrong in (b"", data[:10], data[:-1], data + b"x", b"EFG2" + data[4:]):
            with pytest.raises(MessageError):
                decode_golden(wrong, shape, classes)
        with pytest.raises(MessageError):
            decode_golden(data, shape, classes + 1)


def test_distance_from_golden_outputs_counts_absolute_and_relative():
    """Exactly at the tolerance it is 1; NaN and another shape are infinitely far."""
    wanted = np.array([[0.0, 100.0]], np.float32)
    assert farthest(wanted + np.float32([[1e-3, 0.0]]), wanted, 1e-3) == pytest.approx(1.0, rel=1e-3)
    assert farthest(wanted + np.float32([[0.0, 0.101]]), wanted, 1e-3) == pytest.approx(1.0, rel=1e-2)
    assert farthest(np.full_like(wanted, np.nan), wanted, 1e-3) == np.inf
    assert farthest(wanted[:, :1], wanted, 1e-3) == np.inf


class Clock:
    """Time that runs, and can be put forward."""

    ahead = 0.0

    def __call__(self):
        """Seconds."""
        return time.monotonic() + self.ahead


@pytest.fixture
def clock():
    """A clock."""
    return Clock()


@pytest.fixture
def process(clock):
    """A handle whose child is ended afterwards."""
    process = TrainerProcess(1, 512, clock=clock)
    yield process
    process.cancel()


def wait(process, seconds=120.0):
    """The answer, when it comes."""
    deadline = time.monotonic() + seconds
    while (answer := process.poll()) is None:
        assert time.monotonic() < deadline, "no answer"
        time.sleep(0.01)
    return answer


def test_one_child_tries_and_trains(process, tmp_path):
    """The trial costs no process of its own: the child that has tried a version trains its first round."""
    job = trial(tmp_path, before=-START, drop=0.5)
    process.start(job)
    verdict = wait(process)
    assert (verdict.code, verdict.accuracy) == ("", 1.0)
    assert 20_000_000 < verdict.peak_rss == process.peak_rss
    child = process._child.pid
    c = job.candidate
    process.start(
        Job(
            device="cam-01",
            version=2,
            variant="v",
            round=1,
            engine=c.engine,
            layout=c.layout,
            input_shape=c.input_shape,
            classes=c.classes,
            batch=c.batch,
            graphs=c.graphs,
            weights=c.weights,
            source=job.source,
            task=Task(1, 0.1, 0.1, 4, 1.0, 0),
            outbox=str(tmp_path / "outbox"),
            settled=str(tmp_path / "settled"),
            recipe=c.recipe,
            personal=str(tmp_path / "personal"),
        )
    )
    assert isinstance(wait(process), Done)
    assert process._child.pid == child


def test_a_trial_that_dies_or_takes_too_much_is_a_verdict(process, clock, tmp_path):
    """A child that is killed, too large, too slow or confused fails the version that it tried."""
    job = trial(tmp_path)
    process.start(job)
    process._child.kill()
    assert wait(process).code == "trial-crash"
    process._memory = 1 << 20
    process.start(job)
    assert wait(process).code == "trial-memory"
    process._memory = 512 << 20
    process.start(job)
    os.kill(process._child.pid, signal.SIGSTOP)
    clock.ahead += job.health.seconds + 1
    late = wait(process)
    assert (late.code, late.version) == ("trial-deadline", 2)
    assert "900 s" in late.reason
    process.start(job)
    process._line = b'{"type":"Verdict","version":7}\n'
    assert wait(process).code == "trial-crash"
    process.start(job)
    assert wait(process).code == "", "and none of it is held against the next trial"


@pytest.fixture
def board(tmp_path):
    """A board with the real trainer process."""
    board = toy.Board(tmp_path)
    data_for(tmp_path / "data.npz", START)
    yield board
    if board.agent:
        board.agent._hands.close()


def announce(board, version, files, **changes):
    """Announce a version of the variant with these files."""
    refs = tuple(board.office.offer(role, data) for role, data in files.items())
    changes = {"health": Health(drop=0.1), **changes}
    return board.office.manifest(
        version, files=refs, layout=VARIANT.layout, input_shape=VARIANT.input_shape, classes=VARIANT.classes,
        batch=VARIANT.batch, recipe=VARIANT.recipe, **changes,
    )[0]  # fmt: skip


def run(board, until, seconds=30.0):
    """Let everybody work in real time until something has happened."""
    deadline = time.monotonic() + seconds
    while not until():
        board.turn(0.01)
        time.sleep(0.005)
        assert time.monotonic() < deadline, (board.office.steps(), board.office.errors()[-3:])


def codes(board):
    """The codes with which the board has reported that it went back."""
    return [report.code for report in board.office.reports if report.step in ("reverted", "failed")]


def dying(trainer):
    """Let the trainer's child die of every job as soon as it has it."""
    start = trainer.start

    def begin(job):
        start(job)
        trainer._child.kill()

    trainer.start = begin


BAD = {
    "crash at load": "trial-crash",
    "a graph that does not load": "trial-load",
    "NaN weights": "trial-load",
    "wrong golden": "trial-golden",
    "worse than before": "trial-metric",
    "too slow": "trial-deadline",
    "too much memory": "trial-memory",
}


def test_a_bad_version_that_is_only_served_leaves_the_old_one_answering(board):
    """On a board that only answers: the second version fails its trial, the first stays, and a third takes its place."""
    board.config = msgspec.structs.replace(board.config, engine="inference", data="")
    served = {version: contents(change=change) for version, change in ((1, ""), (2, "golden"), (3, ""))}
    for files in served.values():
        del files["train"]
    announce(board, 1, served[1], engine="inference")
    board.start()
    run(board, board.active)
    announce(board, 2, served[2], engine="inference")
    run(board, lambda: codes(board))
    assert (codes(board), board.active()) == (["trial-golden"], 1)
    board.office.order(1, vector=START, layout=VARIANT.layout)
    announce(board, 3, served[3], engine="inference")
    run(board, lambda: board.active() == 3)
    assert not board.office.updates
    assert board.session.previous.version == 1


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_version_is_left_and_reported_and_the_old_one_serves(board, fault):
    """Whatever is wrong with the second version: the first one stays, trains on, and the second is not tried again."""
    announce(board, 1, contents())
    board.start()
    run(board, board.active)
    trainer = board.agent._hands.trainings._trainer
    change = {"a graph that does not load": "infer", "NaN weights": "nan", "wrong golden": "golden"}.get(fault, "")
    health = Health(drop=0.1, seconds=1e-4) if fault == "too slow" else Health(drop=0.1)
    vector = -START if fault == "worse than before" else START
    if fault == "too much memory":
        trainer._memory = 1 << 20
    if fault == "crash at load":
        dying(trainer)
    announce(board, 2, contents(vector, change), health=health)
    run(board, lambda: codes(board))
    trainer.__dict__.pop("start", None)
    assert codes(board) == [BAD[fault]]
    assert board.office.steps().count("trial") == 2
    assert (board.active(), board.session.install) == (1, None)
    trainer._memory = 512 << 20
    kept = {path.name for path in (board.state / "blobs").iterdir()}
    assert kept == {ref.sha256.hex() for ref in board.session.active.files}, "nothing of the bad version is left"
    board.lose()
    board.start()
    run(board, lambda: len(codes(board)) == 2)
    board.office.order(1, vector=START, layout=VARIANT.layout)
    run(board, lambda: board.office.updates[1])
    assert codes(board) == [BAD[fault]] * 2, "told once more after the restart"
    assert board.office.steps().count("trial") == 2, "but not tried again"


def test_another_rollout_gives_a_failed_version_another_chance(board):
    """Failed by chance (killed), the same version passes under another rollout number."""
    announce(board, 1, contents())
    board.start()
    run(board, board.active)
    trainer = board.agent._hands.trainings._trainer
    dying(trainer)
    manifest = announce(board, 2, contents(-START), health=Health())
    run(board, lambda: codes(board))
    del trainer.start
    board.office.assign(manifest.version, rollout=9)
    run(board, lambda: board.active() == 2)
    assert board.model.disk.failed() == ()
    assert board.model.disk.trial() == TrialRecord(2, 9, 1)


def test_a_first_version_that_fails_leaves_nothing(board):
    """There is nothing to go back to: the device says so and holds nothing."""
    announce(board, 1, contents(change="golden"))
    board.start()
    run(board, lambda: codes(board))
    assert (codes(board), board.office.reports[-1].step) == (["trial-golden"], "failed")
    assert board.active() == 0
    assert not list((board.state / "blobs").iterdir())
