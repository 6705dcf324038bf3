"""The models of a device take turns at its one trainer, for rounds and for trials.

Model: a queue of jobs in front of a `TrainerProcess`, trials first. What comes out are events for the sessions. Nothing is
believed of the trainer but what is on disk: an update counts as trained if the outbox holds it.
"""

import logging
from collections import deque
from dataclasses import dataclass

from edgefl.device.events import Trained, TrainingFailed, Tried
from edgefl.device.held import HeldModel
from edgefl.device.job import Answer, Done, Failed, Job, TrialJob, Verdict
from edgefl.device.training import TrainerProcess

log = logging.getLogger("edgefl.device")


@dataclass(frozen=True, slots=True)
class _Turn:
    model: HeldModel
    job: Job | TrialJob

    @property
    def version(self) -> int:
        """Which version is trained or tried."""
        return self.job.version if isinstance(self.job, Job) else self.job.candidate.version


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

    def put(self, model: HeldModel, job: Job | TrialJob) -> None:
        """Let this job run when it is its turn."""
        if isinstance(job, TrialJob):
            self._waiting.appendleft(_Turn(model, job))
        else:
            self._waiting.append(_Turn(model, job))

    def drop(self, model: HeldModel, *kinds: type[Job] | type[TrialJob]) -> None:
        """Forget the jobs of a model, all or those of some kinds; a running one is ended."""

        def meant(turn: _Turn) -> bool:
            return turn.model is model and isinstance(turn.job, kinds or (Job, TrialJob))

        self._waiting = deque(turn for turn in self._waiting if not meant(turn))
        if self._running and meant(self._running):
            self._running = None
            self._trainer.cancel()

    def advance(self) -> list[tuple[HeldModel, Trained | TrainingFailed | Tried]]:
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


def _outcome(turn: _Turn, answer: Answer) -> Trained | TrainingFailed | Tried:
    name = turn.model.name
    known = {"model": name, "version": turn.version}
    match answer:
        case Verdict():
            how = f"failed ({answer.code}): {answer.reason}" if answer.code else "passed"
            log.info("%s@%d: trial of %.2f s %s", name, answer.version, answer.seconds, how, extra=known)
            return Tried(answer.version, answer.code, answer.reason)
        case Failed():
            log.warning("%s round %d failed: %s", name, answer.round, answer.reason, extra=known)
            return TrainingFailed(answer.round, answer.reason, answer.code)
        case Done():
            return _trained(turn, answer)


def _trained(turn: _Turn, done: Done) -> Trained | TrainingFailed:
    job = turn.job
    entry = turn.model.disk.waiting(job.version, job.variant) if isinstance(job, Job) else None
    if entry is None or (entry.round, entry.sha256) != (done.round, done.sha256):
        return TrainingFailed(done.round, "the trainer was done, but its update is not in the outbox")
    known = {"model": turn.model.name, "version": turn.version, "round": done.round}
    log.info("%s round %d trained in %.2f s", turn.model.name, done.round, done.seconds, extra=known)
    return Trained(done.round, done.sha256, entry.loss_after)
