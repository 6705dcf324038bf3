"""The trainer as a process: killed, stopped, talking nonsense, too large, idle, orphaned; and what it and the agent weigh."""

import os
import select
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

import make_graphs as make
from edgefl.codec.weights import Precision, encode_weights
from edgefl.device import training
from edgefl.device.job import Done, Failed, Job, encode_line
from edgefl.device.resources import cpu_seconds, peak_rss, resident
from edgefl.device.training import IDLE_SECONDS, JOB_SECONDS, STILL_SECONDS, TrainerProcess
from edgefl.store.outbox import read_entry, read_memory
from edgefl.wire.rounds import Task

GOLDEN = make.read("variant-dense")
LIMIT_MB = 512
OTHER_ROUND = encode_line(Failed(round=7, reason="x", fault="input", peak_rss=0)).decode().strip()


class Clock:
    """Time that runs, and can be put forward."""

    def __init__(self):
        self.ahead = 0.0

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
    process = TrainerProcess(1, LIMIT_MB, clock=clock)
    yield process
    process.cancel()


@pytest.fixture
def job(tmp_path):
    """A first round of the golden variant."""
    graphs = {}
    for role, data in GOLDEN.files.items():
        (tmp_path / role).write_bytes(data)
        graphs[role] = str(tmp_path / role)
    start = np.frombuffer(GOLDEN.start, dtype=np.float32)
    (tmp_path / "weights").write_bytes(encode_weights(start, GOLDEN.layout, Precision.FP32))
    rng = np.random.default_rng(5)
    np.savez(tmp_path / "data.npz", x=rng.normal(size=(40, 6)).astype(np.float32), y=rng.integers(0, 3, 40))
    return Job(
        device="cam-01", version=1, variant="w1-fp32", round=1, engine=GOLDEN.engine, layout=GOLDEN.layout,
        input_shape=GOLDEN.input_shape, classes=GOLDEN.classes, batch=GOLDEN.batch, graphs=graphs,
        weights=str(tmp_path / "weights"), source=f"npz:{tmp_path / 'data.npz'}", task=Task(1, 0.1, 0.1, 4, 1.0, 0),
        outbox=str(tmp_path / "outbox"), settled=str(tmp_path / "settled"), recipe=GOLDEN.recipe,
        personal=str(tmp_path / "personal"),
    )  # fmt: skip


def long(job):
    """The job, made to last."""
    return msgspec.structs.replace(job, task=msgspec.structs.replace(job.task, epochs=1_000_000))


def wait(process, seconds=120.0):
    """The answer, when it comes; nothing is polled meanwhile."""
    deadline = time.monotonic() + seconds
    while (answer := process.poll()) is None:
        assert time.monotonic() < deadline, "no answer"
        select.select(process.wake, (), (), 0.2)
    return answer


def training_child(process):
    """The child's process id, once it is at work."""
    deadline = time.monotonic() + 120
    while cpu_seconds(process._child.pid) < 0.5:  # past its imports, or nearly
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process._child.pid


def impostor(tmp_path, monkeypatch, script):
    """Let a shell script take the trainer's place."""
    path = tmp_path / "impostor"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(path))
    return TrainerProcess(1, LIMIT_MB)


def test_a_job_is_done_and_the_next_one_by_the_same_child(process, job):
    """The answer names the round and the update in the outbox; the child stays for the next round."""
    process.start(job)
    assert process.busy
    done = wait(process)
    assert isinstance(done, Done)
    assert done.sha256 == read_entry(Path(job.outbox)).sha256
    assert 20_000_000 < process.peak_rss == done.peak_rss
    child = process._child.pid
    process.start(msgspec.structs.replace(job, round=2))
    assert wait(process).round == 2
    assert process._child.pid == child


def test_data_that_is_missing_is_a_reason(process, job, tmp_path):
    """The child words what it lacks, lives on, and does the same round when the data is there."""
    data = (tmp_path / "data.npz").read_bytes()
    (tmp_path / "data.npz").unlink()
    process.start(job)
    failed = wait(process)
    assert isinstance(failed, Failed)
    assert "data.npz" in failed.reason
    (tmp_path / "data.npz").write_bytes(data)
    process.start(job)
    assert isinstance(wait(process), Done)


@pytest.mark.parametrize(("number", "words"), [(signal.SIGKILL, "SIGKILL, probably out of memory"), (signal.SIGTERM, "SIGTERM")])
def test_a_child_that_is_killed_is_replaced(process, job, number, words):
    """Death in mid-training is an answer with its cause; the next job gets a new child."""
    process.start(long(job))
    os.kill(training_child(process), number)
    failed = wait(process)
    assert isinstance(failed, Failed)
    assert words in failed.reason
    assert read_entry(Path(job.outbox)) is None
    process.start(job)
    assert isinstance(wait(process), Done)


def test_death_leaves_residual_and_velocity_of_one_moment(process, job, tmp_path):
    """Killed -9 at many moments, the trainer leaves the settled memory as it was; run again, it makes the same update."""
    job = msgspec.structs.replace(job, task=msgspec.structs.replace(job.task, correction=0.9, epochs=20))
    process.start(job)
    assert isinstance(wait(process), Done)
    (tmp_path / "outbox").rename(tmp_path / "settled")
    settled = (tmp_path / "settled").read_bytes()
    second = msgspec.structs.replace(job, round=2)
    process.start(second)
    undisturbed, began = wait(process), time.monotonic()
    assert isinstance(undisturbed, Done)
    whole = (tmp_path / "outbox").read_bytes()
    span = time.monotonic() - began + undisturbed.seconds
    for place in range(0, 12, 2):
        (tmp_path / "outbox").unlink(missing_ok=True)
        process.start(second)
        time.sleep(span * place / 10)
        child = process._child
        child.kill()
        wait(process)
        child.wait()
        assert (tmp_path / "settled").read_bytes() == settled
        if (tmp_path / "outbox").exists():
            assert (tmp_path / "outbox").read_bytes() == whole
        process.start(second)
        assert wait(process).sha256 == undisturbed.sha256
        assert (tmp_path / "outbox").read_bytes() == whole
    entry, residual, velocity = read_memory(tmp_path / "outbox")
    assert (entry.round, len(residual), len(velocity)) == (2, 4 * GOLDEN.layout.size, 4 * GOLDEN.layout.size)


def test_a_child_that_died_while_idle_costs_no_round(process, job):
    """A child that the system has ended between two jobs is found out before the next job is given to it."""
    process.start(job)
    wait(process)
    os.kill(process._child.pid, signal.SIGKILL)
    process._child.wait()
    process.start(job)
    assert isinstance(wait(process), Done)


def test_an_idle_child_is_ended(process, job, clock):
    """After a minute without work its memory is given back."""
    process.start(job)
    wait(process)
    child = process._child.pid
    clock.ahead += IDLE_SECONDS + 1
    assert process.poll() is None
    assert resident(child) == 0


@pytest.mark.parametrize(("ahead", "words"), [(STILL_SECONDS + 1, "stood still"), (JOB_SECONDS + 1, "longer than 6 hours")])
def test_a_child_that_hangs_is_ended(process, job, clock, ahead, words):
    """Stopped in mid-training, it is ended after minutes without processor time, or after the longest time a job may take."""
    process.start(long(job))
    os.kill(training_child(process), signal.SIGSTOP)
    assert process.poll() is None
    clock.ahead += ahead
    if words == "longer than 6 hours":
        process._cpu = (-1.0, clock())  # as if it were busy
    failed = process.poll()
    assert words in failed.reason
    assert not process.busy
    assert process._child is None


def test_memory_above_the_profile_is_ended_and_worded(job, clock):
    """A trainer that outgrows its limit is ended by the agent, which says what was allowed, what was found, and what to do."""
    process = TrainerProcess(1, 16, clock=clock)
    process.start(long(job))
    failed = wait(process)
    assert "more memory than this device's profile allows: expected at most 16 MiB, found" in failed.reason
    assert "narrower variant" in failed.reason
    assert failed.peak_rss > 16 << 20
    assert process._child is None


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ('read job; echo \'{"type": "Done"}\'; cat', "nonsense"),
        ("read job; echo hello; cat", "nonsense"),
        ('read job; printf \'{"type":"\\377\\376"}\\n\'; cat', "nonsense"),
        ("read job; yes nonsense | tr -d '\\n'", "nonsense"),
        (f"read job; echo '{OTHER_ROUND}'; cat", "round 7"),
        ("read job; exec >&-; exec sleep 60", "died"),
        ("exit 3", "exit code 3"),
        ("read job; printf '{\"type\":'; exit 0", "exit code 0"),
    ],
)
def test_nonsense_is_an_answer_too(tmp_path, monkeypatch, job, script, words):
    """Whatever comes out of the child instead of an answer, even without end, becomes one, and the child goes."""
    monkeypatch.setattr(training, "REAP_SECONDS", 0.3)
    process = impostor(tmp_path, monkeypatch, script)
    process.start(job)
    failed = wait(process, seconds=40)  # before its sleep is over
    assert isinstance(failed, Failed)
    assert words in failed.reason
    assert not process.busy
    process.cancel()


def test_a_trainer_that_cannot_be_started_is_a_reason(tmp_path, monkeypatch, job):
    """A missing interpreter is told by name."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    process = TrainerProcess(1, LIMIT_MB)
    process.start(job)
    assert "could not be started" in wait(process).reason
    assert "no-python" not in str(process.wake)


def test_a_job_for_a_child_that_does_not_read_never_blocks(tmp_path, monkeypatch, job):
    """The largest job fits the pipe: giving it away takes no time even if the child sleeps."""
    process = impostor(tmp_path, monkeypatch, "exec sleep 60")
    large = msgspec.structs.replace(job, source="npz:" + "x" * 500_000)
    assert len(encode_line(large)) > 500_000
    began = time.monotonic()
    process.start(large)
    assert process.poll() is None
    assert time.monotonic() - began < 20.0
    process.cancel()
    process.start(msgspec.structs.replace(job, source="npz:" + "x" * 2_000_000))
    assert "could not be started" in process.poll().reason
    process.cancel()


ORPHANED = """
import os, sys, time, msgspec
from pathlib import Path
from edgefl.device.job import Job
from edgefl.device.training import TrainerProcess
process = TrainerProcess(1, 512)
process.start(msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Job))
print(process._child.pid, flush=True)
while sys.argv[2] == "late":
    process.poll()
    time.sleep(0.05)
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("when", ["early", "late"])
def test_an_orphan_writes_no_outbox(tmp_path, job, when):
    """A trainer dies with its agent, whether that is killed before the trainer has come to itself or in the middle of a round."""
    (tmp_path / "job").write_bytes(msgspec.json.encode(long(job) if when == "late" else job))
    agent = subprocess.Popen([sys.executable, "-c", ORPHANED, tmp_path / "job", when], stdout=subprocess.PIPE)
    child = int(agent.stdout.readline())
    if when == "late":
        deadline = time.monotonic() + 120
        while cpu_seconds(child) < 0.5 and time.monotonic() < deadline:
            time.sleep(0.02)
        agent.kill()
    agent.wait()
    agent.stdout.close()
    deadline = time.monotonic() + 120
    while resident(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert resident(child) == 0
    assert not (tmp_path / "outbox").exists()


WEIGHED = """
import os, sys, time, msgspec
os.environ["OPENBLAS_NUM_THREADS"] = "1"
import edgefl.device.start
from pathlib import Path
from edgefl.device.job import Job
from edgefl.device.resources import peak_rss
from edgefl.device.training import TrainerProcess
process = TrainerProcess(1, 512)
process.start(msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Job))
while (answer := process.poll()) is None:
    time.sleep(0.05)
print(type(answer).__name__, peak_rss(), process.peak_rss, sorted({"torch", "onnx", "onnxruntime"} & set(sys.modules)))
process.cancel()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("model", "limit_mb"), [("mnist-2nn", 130), ("mnist-cnn", 175)])
def test_agent_and_trainer_fit_the_smallest_board(tmp_path, job, record_property, model, limit_mb):
    """With 200 examples, agent and trainer together stay far below the memory of the smallest profile that trains."""
    pytest.importorskip("torch")
    from edgefl.export.graphs import export_graphs
    from edgefl.export.models import load_factory
    from edgefl.profile import shipped_profiles

    source = load_factory(model)
    exported = export_graphs(source, 1.0, "portable", 10)
    for role, data in exported.graphs.items():
        (tmp_path / role).write_bytes(data)
    rng = np.random.default_rng(0)
    vector = (0.01 * rng.normal(size=exported.layout.size)).astype(np.float32)
    (tmp_path / "weights").write_bytes(encode_weights(vector, exported.layout, Precision.FP32))
    x = rng.normal(size=(200, *source.input_shape)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=rng.integers(0, source.classes, 200))
    job = msgspec.structs.replace(
        job, layout=exported.layout, input_shape=source.input_shape, classes=source.classes, batch=10,
        graphs={role: str(tmp_path / role) for role in exported.graphs},
    )  # fmt: skip
    (tmp_path / "job").write_bytes(msgspec.json.encode(job))
    done = subprocess.run([sys.executable, "-c", WEIGHED, tmp_path / "job"], capture_output=True, text=True, check=True)
    kind, agent, trainer, heavy = done.stdout.split(maxsplit=3)
    megabytes = (int(agent) + int(trainer)) / 1e6
    record_property("agent_mb", int(agent) / 1e6)
    record_property("trainer_mb", int(trainer) / 1e6)
    print(f"{model}: agent {int(agent) / 1e6:.0f} MB, trainer {int(trainer) / 1e6:.0f} MB")
    assert (kind, heavy.strip()) == ("Done", "[]")
    assert megabytes < limit_mb
    least = min(profile.memory_mb for profile in shipped_profiles().values() if profile.engine != "none")
    assert int(trainer) < least << 20


def test_resources_are_read_from_the_kernel():
    """A process that works has memory and processor time; one that is gone has neither."""
    assert 1_000_000 < resident(os.getpid()) <= peak_rss()
    assert cpu_seconds(os.getpid()) > 0.0
    assert (resident(1 << 30), cpu_seconds(1 << 30)) == (0, 0.0)
