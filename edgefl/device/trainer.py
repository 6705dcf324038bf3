"""The trainer: a child process of the agent that loads ONNX Runtime, trains a round and writes the outbox, or tries a version.

Model: it reads a `Job` or a `TrialJob` per line, answers each with `Done`, `Failed` or a `Verdict`, and ends when its input ends.
The engine is kept from one job to the next while the variant stays the same; the examples are read anew, so that new ones are
seen. It lowers its priority before it loads anything heavy and dies with the agent; the agent ends it when it takes more memory
than the profile allows, so that a model that eats the board's memory takes this process down and not the device.

Rules: standard output carries answers only; what libraries print goes to standard error. An answer `Done` is given after the
outbox is on disk. The same job gives the same bytes: shuffling and rounding are seeded by task, round and device.
"""

import contextlib
import ctypes
import hashlib
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from edgefl.codec.marks import factors
from edgefl.codec.weights import decode_weights
from edgefl.device.coding import Learnt, carried, last_loss, write_update
from edgefl.device.job import AGENT_VARIABLE, Answer, Done, Failed, Job, TrialJob, Verdict, decode_job, encode_line
from edgefl.device.resources import peak_rss
from edgefl.device.trial import try_out, variant_files
from edgefl.engine.contract import Engine, VariantFiles
from edgefl.engine.curvature import curvature
from edgefl.engine.open import open_engine
from edgefl.errors import EdgeflError, EngineError, Fault, StoreError
from edgefl.examples import Examples
from edgefl.layout import Float32
from edgefl.rates import rate_by_curvature, rate_by_loss
from edgefl.sources.parse import open_source
from edgefl.store.personal import keep_personal, with_personal

NICENESS = 10
PR_SET_PDEATHSIG = 1
"""From <sys/prctl.h>: the signal that this process gets when its parent dies. An orphan must not write an outbox."""


class Trainer:
    """Runs jobs one after the other and keeps what the next one can use again."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._engine: tuple[VariantFiles, Engine] | None = None
        self.opening = False
        """Whether the engine was being opened when the last job ended."""

    def run(self, job: Job) -> Done:
        """Train, encode, and write the outbox.

        Raises:
            EdgeflError: data, files, engine or disk do not allow it; what was written counts for nothing.
        """
        began = time.monotonic()
        learnt, vector = self._learn(job, rng := _rng(job))
        self.forget()  # compressing needs the memory, and opening an engine takes a tenth of a second
        sha256 = write_update(job, learnt, rng)
        keep_personal(Path(job.personal), job.version, job.layout, vector)
        return Done(
            round=job.round,
            sha256=sha256,
            seconds=time.monotonic() - began,
            peak_rss=peak_rss(),
            step_seconds=learnt.trained.step_seconds,
        )

    def _learn(self, job: Job, rng: np.random.Generator) -> tuple[Learnt, Float32]:
        """Train; what came of it, and all parameters after it."""
        engine = self._open(job)
        examples = open_source(job.source).load().shaped(job.input_shape, job.classes, job.recipe.loss)
        received = decode_weights(Path(job.weights).read_bytes(), job.layout)
        base = with_personal(Path(job.personal), job.version, job.layout, received)
        kept = factors(received, job.layout)
        task, rate = job.task, _rate(job, engine, examples, base, kept)
        engine.set_vector(base)
        mu, mutual = task.proximal, task.mutual
        trained = engine.train(examples, epochs=task.epochs, learning_rate=rate, rng=rng, proximal=mu, mutual=mutual, kept=kept)
        vector = engine.vector()
        delta = carried(job.layout, vector) - carried(job.layout, base)
        if not np.isfinite(delta).all():
            raise EngineError("training diverged to NaN or infinite weights", remedy="Lower the plan's learning rate")
        return Learnt(delta, received, len(examples), trained), vector

    def _open(self, job: Job) -> Engine:
        files = variant_files(job)
        if self._engine is None or self._engine[0] != files:
            self._engine = None  # the old engine's memory goes before the new one's comes
            self.opening = True
            self._engine = (files, open_engine(files, threads=self._threads))
        self.opening = False
        return self._engine[1]

    def try_out(self, job: TrialJob) -> Verdict:
        """Try a version; `edgefl.device.trial`."""
        self.forget()
        return try_out(job, partial(open_engine, threads=self._threads))

    def forget(self) -> None:
        """Let go of the engine: after a failure its state is not to be trusted, and its memory may be what is missing."""
        self._engine = None


def _rng(job: Job) -> np.random.Generator:
    """Of shuffling and rounding: the same job gives the same bytes."""
    return np.random.default_rng([job.task.seed, job.round, *hashlib.sha256(job.device.encode()).digest()[:4]])


def _rate(job: Job, engine: Engine, examples: Examples, base: Float32, kept: Float32 | None) -> float:
    """The learning rate of this device in this round (`edgefl.rates`)."""
    task = job.task
    if task.rate == "loss":
        return rate_by_loss(task.learning_rate, last_loss(job), task.loss)
    if task.rate == "curvature":
        rows = np.random.default_rng([task.seed, job.round]).permutation(len(examples))[: job.batch]
        batch, rate = examples.take(rows), task.learning_rate
        sharp = curvature(engine, job.recipe, base, batch, rate, kept=kept, mutual=task.mutual)
        return rate_by_curvature(task.learning_rate, sharp)
    return task.learning_rate


def answer(trainer: Trainer, job: Job | TrialJob) -> Answer:
    """Run a job; whatever goes wrong becomes an answer."""
    if isinstance(job, TrialJob):
        return trainer.try_out(job)
    fault: Fault
    try:
        return trainer.run(job)
    except EdgeflError as error:
        reason, fault, code = str(error), error.fault, "load" if trainer.opening else error.code
    except MemoryError:
        reason, fault = "training needs more memory than the profile allows. Push a narrower variant.", "machine"
        code = "memory"
    except OSError as error:
        reason, fault = f"reading or writing failed: {error}.", "machine"
        code = StoreError.code
    trainer.forget()
    return Failed(round=job.round, reason=reason, fault=fault, peak_rss=peak_rss(), code=code)


def yield_to_others() -> None:
    """Lower this process's priority, offer it to the kernel as the first to go when memory is short, and die with the agent.

    The limit itself is watched by the agent (`device.training`) and, on a board, by the unit's control group. RLIMIT_DATA and
    RLIMIT_AS count what is reserved, not what is used: with several threads they hit long before the memory is needed, and ONNX
    Runtime, whose thread pool cannot start then, waits for ever.
    """
    os.nice(NICENESS)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.environ.get(AGENT_VARIABLE, str(os.getppid())) != str(os.getppid()):
        raise SystemExit("the agent is gone")  # before it could be bound to our end
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the agent, which ends us


def serve(read: Callable[[], bytes], write: Callable[[bytes], object], trainer: Trainer) -> None:
    """Answer jobs until the input ends."""
    while line := read():
        write(encode_line(answer(trainer, decode_job(line))))


def main(arguments: list[str]) -> None:
    """Entry of the child process: `python -m edgefl.device.trainer THREADS`."""
    threads = int(arguments[0])
    yield_to_others()
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # libraries that print must not garble the answers
    serve(sys.stdin.buffer.readline, answers.write, Trainer(threads))


if __name__ == "__main__":
    main(sys.argv[1:])
