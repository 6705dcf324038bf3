"""A trial in the trainer's process: it costs none of its own, and whatever becomes of the child is a verdict."""

import os
import signal
import time

import pytest

from edgefl.device.job import Done, Job
from edgefl.device.training import TrainerProcess
from edgefl.wire.rounds import Task
from trialversions import START, trial


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
