"""The models of a device take turns at its one trainer.

Model: a queue of jobs in front of a `TrainerProcess`. What comes out are events for the sessions. Nothing is believed of the
trainer but what is on disk: an update counts as trained if the outbox holds it.
"""

import logging
from collections import deque
from dataclasses import dataclass

from edgefl.device.events import Trained, TrainingFailed
from edgefl.device.held import HeldModel
from edgefl.device.job import Answer, Done, Job
from edgefl.device.training import TrainerProcess

log = logging.getLogger("edgefl.device")


@dataclass(frozen=True, slots=True)
class _Turn:
    model: HeldModel
    job: Job


class TrainingQueue:
    """Jobs of all models. Owned by the agent's one thread."""

    def __init__(self, trainer: TrainerProcess) -> None:
        self._trainer = trainer
        self._waiting: deque[_Turn] = deque()
        self._running: _Turn | None = None

    @property
    def wake(self) -> tuple[int, ...]:
        """File descriptors that become readable when a job may have ended."""
        return self._trainer.wake

    @property
    def peak_rss(self) -> int:
        """Peak resident bytes of any trainer so far."""
        return self._trainer.peak_rss

    @property
    def busy(self) -> bool:
        """Whether the trainer is at work."""
        return self._trainer.busy

    @property
    def cpu(self) -> float:
        """Processor seconds of the trainer's process, as of the last look at the running job."""
        return self._trainer.cpu

    def put(self, model: HeldModel, job: Job) -> None:
        """Let this job run when it is its turn."""
        self._waiting.append(_Turn(model, job))

    def drop(self, model: HeldModel) -> None:
        """Forget the jobs of a model; a running one is ended."""
        self._waiting = deque(turn for turn in self._waiting if turn.model is not model)
        if self._running and self._running.model is model:
            self._running = None
            self._trainer.cancel()

    def advance(self) -> list[tuple[HeldModel, Trained | TrainingFailed]]:
        """What the running job has come to, if it has ended; then the next one begins."""
        ended = []
        answer = self._trainer.poll()
        if answer is not None and self._running is not None:
            ended.append((self._running.model, _outcome(self._running, answer)))
            self._running = None
        if not self._trainer.busy and self._waiting:
            self._running = self._waiting.popleft()
            self._trainer.start(self._running.job)
        return ended

    def close(self) -> None:
        """End the trainer."""
        self._waiting.clear()
        self._running = None
        self._trainer.cancel()


def _outcome(turn: _Turn, answer: Answer) -> Trained | TrainingFailed:
    job, name = turn.job, turn.model.name
    known = {"model": name, "version": job.version, "round": job.round}
    if not isinstance(answer, Done):
        log.warning("%s round %d failed: %s", name, job.round, answer.reason, extra=known)
        return TrainingFailed(job.round, answer.reason)
    entry = turn.model.disk.waiting(job.version, job.variant)
    if entry is None or (entry.round, entry.sha256) != (job.round, answer.sha256):
        return TrainingFailed(job.round, "the trainer was done, but its update is not in the outbox")
    log.info("%s round %d trained in %.2f s", name, job.round, answer.seconds, extra=known)
    return Trained(job.round, answer.sha256, entry.loss_after)
