"""Fit is proved: before a variant is announced, the board's own trainer runs it here within the board's limits.

Model. A rehearsal is what a board will do with the variant: the trainer process (`edgefl.device.trainer`, started and watched by
`edgefl.device.training`) tries it (golden outputs, evaluation, a training step) and then trains a round: weights decoded, a few
steps at the push's batch, the update compressed with history and momentum, update and residual written. Files are those that will
be sent, examples are random. Measured are the peak of the process's resident memory, as the kernel has kept it (VmHWM), and the
fastest step. A variant that is only served is tried and not trained: its trial answers from the same graphs, with as many
examples at once, as applications on the board do (`edgefl.device.model`), and that is its peak.

What counts is resident memory, by the same code and in the same way as on the board: a variant whose recorded peak is above the
limit does not fit, even if nobody looked at that moment. The process itself may go further, up to a ceiling at which it is ended:
by how much a variant is too large says how much smaller the next one has to be. What counts is neither RLIMIT_AS nor RLIMIT_DATA,
which are about what is reserved and mapped (ONNX Runtime reserves several times what it uses), nor a control group, which few
machines that push let their users write. See ADR 0019.

The round is a demanding one: a whole update in 8 bits, as in a race (`edgefl.jumpstart`), coded in context, with momentum. With a
dense model of 4,586,510 parameters it peaks at 303 MiB, where a sparse update (2 % in 4 bits) takes 261 MiB, one of a half 283, a
rotated one 265. Two plans take more than is rehearsed: a curvature rate by 6 MiB, and a price on a whole update by 25 MiB. With
199,210 parameters all of these lie between 73 and 81 MiB.

Rules: the profile's threads, but no more than this machine has processors; profiles with the same variant, engine and threads
share one rehearsal. The times are of this machine: only a profile with a measured `slowdown` turns them into the board's.
"""

import os
import platform
import re
import select
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgspec
import numpy as np

from edgefl.device.job import Answer, Done, Held, Job, Side, TrialJob, graphs_of
from edgefl.device.training import TrainerProcess
from edgefl.engine.runtime import onnxruntime
from edgefl.errors import EngineError, StoreError
from edgefl.examples import Examples
from edgefl.jumpstart import FINE, WHOLE
from edgefl.layout import Layout
from edgefl.plan import Plan
from edgefl.profile import Profile, trains
from edgefl.recipe import Recipe
from edgefl.store.blobs import BlobStore
from edgefl.wire.files import FileRef
from edgefl.wire.releases import Fit, Health
from edgefl.wire.tasks import task_of

MIB = 1 << 20
STEPS = 3
"""At least so many: an optimiser's state shows in the second, and the first is slow."""
EVALUATED = 64
"""Examples at least: as many as a device evaluates at once (`edgefl.engine.inference`)."""
SECONDS = 600.0
LOOK = 0.02
"""Seconds between two looks at the process."""
HEADROOM, MOST_HEADROOM = 4, 1024
"""A rehearsal may take so many times what the profile allows, but beyond that no more than so many MiB."""
RATE = 1e-4
PROXIMAL = 0.1
CORRECTION = 0.9


@dataclass(frozen=True, slots=True)
class Subject:
    """A variant whose files are on disk.

    Attributes:
        name: for example `w0.5-int8`; with the engine it tells the variants of a push apart.
        engine, layout, input_shape, classes, batch, recipe: as in its manifest.
        files: all of them.
        examples: to run it with, shaped for it.
    """

    name: str
    engine: str
    layout: Layout
    input_shape: tuple[int, ...]
    classes: int
    batch: int
    recipe: Recipe
    files: Sequence[FileRef]
    examples: Examples


@dataclass(frozen=True, slots=True)
class Measured:
    """What the trainer took.

    Attributes:
        peak_bytes: resident bytes at most.
        step_seconds: of its fastest step; 0 if it was ended before one, or takes none.
        ended: whether it was ended for its memory: then it takes more than this.
    """

    peak_bytes: int
    step_seconds: float
    ended: bool = False


def rows_for(batch: int) -> int:
    """How many examples a rehearsal needs."""
    return max(batch, EVALUATED)


class Rehearsals:
    """Runs the variants of one push, each once.

    Args:
        blobs: where their files are.
    """

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._measured: dict[tuple[str, str, int], Measured] = {}

    def run(self, subject: Subject, profile: Profile) -> Measured:
        """What the variant takes with the profile's threads; more than the profile allows is an answer, not an error.

        Raises:
            EngineError: the trainer fails with it.
            StoreError: no room for the rehearsal.
        """
        threads = threads_of(profile)
        key = (subject.engine, subject.name, threads)
        known = self._measured.get(key)
        if known is None or (known.ended and known.peak_bytes <= profile.memory_mb * MIB):
            known = rehearse(subject, self._blobs, threads=threads, memory_mb=ceiling(profile.memory_mb))
            self._measured[key] = known
        return known


def fit_of(found: Measured, profile: Profile) -> Fit:
    """What was measured, as it stands in a manifest."""
    step_ms = round(1000.0 * found.step_seconds, 3)
    return Fit(found.peak_bytes, step_ms, profile.memory_mb, threads_of(profile), this_machine())


def threads_of(profile: Profile) -> int:
    """The profile's threads, but no more than this machine has processors."""
    return min(profile.threads, len(os.sched_getaffinity(0)))


def ceiling(memory_mb: int) -> int:
    """MiB at which a rehearsal for a profile that allows so many is ended."""
    return max(memory_mb, min(HEADROOM * memory_mb, MOST_HEADROOM))


def rehearse(subject: Subject, blobs: BlobStore, *, threads: int, memory_mb: int) -> Measured:
    """Let the trainer try a variant, and train it unless it is only served.

    Args:
        subject: the variant.
        blobs: where its files are.
        threads: of the trainer.
        memory_mb: MiB of resident memory at which it is ended.

    Raises:
        EngineError: it failed, in whatever way.
        StoreError: the files that it needs cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="edgefl-") as directory:
            trial, job = _jobs(subject, blobs, Path(directory))
            process = TrainerProcess(threads, memory_mb)
            try:
                first = last = _run(process, trial)
                if not first.code and trains(subject.engine):
                    last = _run(process, job)
            finally:
                process.cancel()
    except OSError as error:
        raise StoreError("a variant could not be rehearsed", found=str(error), remedy="Make room on the disk") from error
    if isinstance(last, Done):
        return Measured(max(first.peak_rss, last.peak_rss), last.step_seconds)
    if not last.code:
        return Measured(last.peak_rss, 0.0)
    if last.code in ("memory", "trial-memory"):
        return Measured(last.peak_rss, 0.0, ended=True)
    raise EngineError(
        f"variant {subject.name} fails in the board's trainer",
        found=last.reason,
        remedy="Use a profile with the other engine, or simpler layers",
    )


def _run(process: TrainerProcess, job: Job | TrialJob) -> Answer:
    process.start(job)
    while (answer := process.poll()) is None:
        select.select(process.wake, (), (), LOOK)
    return answer


def _jobs(subject: Subject, blobs: BlobStore, directory: Path) -> tuple[TrialJob, Job]:
    """The two jobs of a board, with examples written to the directory."""
    paths = {ref.role: str(blobs.path(ref.sha256)) for ref in subject.files}
    examples = directory / "examples.npz"
    np.savez(examples, x=subject.examples.x, y=subject.examples.y)
    side = Side(
        version=1,
        engine=subject.engine,
        layout=subject.layout,
        input_shape=subject.input_shape,
        classes=subject.classes,
        batch=subject.batch,
        graphs=graphs_of(subject.files, lambda sha256: str(blobs.path(sha256))),
        weights=paths["weights"],
        recipe=subject.recipe,
    )
    start = next(Held(path=paths["weights"], sha256=ref.sha256) for ref in subject.files if ref.role == "weights")
    epochs = -(-STEPS // max(1, len(subject.examples) // subject.batch))
    proximal = PROXIMAL if subject.recipe.proximal else 0.0
    plan = Plan(epochs=epochs, learning_rate=RATE, proximal=proximal, correction=CORRECTION, sparsity=WHOLE, bits=FINE)
    job = Job(
        **msgspec.structs.asdict(side),
        device="rehearsal",
        variant=subject.name,
        round=1,
        source=f"npz:{examples}",
        task=task_of(plan, 1),
        outbox=str(directory / "outbox"),
        settled=str(directory / "settled"),
        personal=str(directory / "personal"),
        weights_sha256=start.sha256,
        start=start,
    )
    golden, health = paths.get("golden", ""), Health(seconds=SECONDS)
    return TrialJob(candidate=side, before=None, golden=golden, source=job.source, health=health), job


@cache
def this_machine() -> str:
    """What measures here: architecture, processor if the kernel names it, ONNX Runtime."""
    try:
        named = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except (OSError, UnicodeDecodeError):
        named = None
    processor = [named.group(1).strip()[:200]] if named else []
    return ", ".join([platform.machine(), *processor, f"ONNX Runtime {onnxruntime().__version__}"])
