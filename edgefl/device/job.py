"""What the agent and its trainer process say to each other: one JSON line per message, over the child's standard streams.

The agent never loads ONNX Runtime; the trainer never talks to the network. Between them go only names of files and
numbers, so that either may die at any time: the files are whole or not there.
"""

from collections.abc import Callable, Iterable

import msgspec

from edgefl.errors import Fault
from edgefl.layout import Layout
from edgefl.recipe import Recipe
from edgefl.wire.files import FileRef
from edgefl.wire.releases import SERVE, Health
from edgefl.wire.rounds import Task

AGENT_VARIABLE = "EDGEFL_AGENT"
"""Environment variable that tells the trainer its agent's process id."""


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """A weights file that both ends know: where it lies, its SHA-256, and the round whose weights it holds (0: the version's)."""

    path: str
    sha256: bytes
    round: int = 0


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """A version with weights, ready to load.

    Attributes:
        version, engine, layout, input_shape, classes, batch: as in its manifest.
        graphs: path of each graph by role.
        weights: path of the encoded weights.
        recipe: loss and optimiser of the graphs.
    """

    version: int
    engine: str
    layout: Layout
    input_shape: tuple[int, ...]
    classes: int
    batch: int
    graphs: dict[str, str]
    weights: str
    recipe: Recipe = Recipe()


class Job(Side, frozen=True, kw_only=True, tag=True):
    """Train one round: the version with the round's weights.

    Attributes:
        device, variant, round: with the version, what the update will be known by.
        source: where the examples come from (see `sources.parse`).
        task: how to train and how to encode.
        outbox, settled: where the update goes, and where the last residual lies.
        personal: where the values of personal tensors are kept.
        weights_sha256: of the round's weights; empty if it is not known.
        start: the version's weights; without them the update is coded plainly.
        before: the weights that the settled update was trained from; None if they are gone or too old to code with.
    """

    device: str
    variant: str
    round: int
    source: str
    task: Task
    outbox: str
    settled: str
    personal: str = ""
    weights_sha256: bytes = b""
    start: Held | None = None
    before: Held | None = None


class TrialJob(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Try a version.

    Attributes:
        candidate: what is tried.
        before: what it must not fall behind; None leaves that out.
        golden: path of its golden file; empty if it has none.
        source: where the device's own examples come from.
        health: what it has to meet.
        personal: where the values of personal tensors of `before` are kept.
    """

    candidate: Side
    before: Side | None
    golden: str
    source: str
    health: Health
    personal: str = ""


class Verdict(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What a trial came to.

    Attributes:
        version: that was tried.
        code: empty if it has passed; otherwise why not, for example `trial-golden`.
        reason: the same as a sentence.
        accuracy, before: of the candidate and of the version before on the device's own data; None if not measured.
        seconds: that the trial took.
        peak_rss: of the trainer, in bytes.
    """

    version: int
    code: str = ""
    reason: str = ""
    accuracy: float | None = None
    before: float | None = None
    seconds: float = 0.0
    peak_rss: int = 0


class Done(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The outbox is written.

    Attributes:
        round, sha256: of the update.
        seconds: that the job took.
        peak_rss: of the trainer, in bytes.
        step_seconds: of the fastest training step.
    """

    round: int
    sha256: bytes
    seconds: float
    peak_rss: int
    step_seconds: float = 0.0

    @property
    def code(self) -> str:
        """As of the other answers; empty, because nothing went wrong."""
        return ""


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """No update was made.

    Attributes:
        fault: the family of the error: `input`, `peer`, `machine`, or `edgefl` for a bug.
        code: the error's, or `load` (the graphs), `crash`, `memory` or `time`.
    """

    round: int
    reason: str
    fault: Fault
    peak_rss: int
    code: str = ""


Answer = Done | Failed | Verdict


def graphs_of(files: Iterable[FileRef], path: Callable[[bytes], str]) -> dict[str, str]:
    """Path of each graph that the trainer uses by role; `path` gives that of a file with this SHA-256."""
    return {ref.role: path(ref.sha256) for ref in files if ref.role not in ("weights", "golden", SERVE)}


def encode_line(message: Job | TrialJob | Answer) -> bytes:
    """One line, newline included."""
    return msgspec.json.encode(message) + b"\n"


def decode_job(line: bytes) -> Job | TrialJob:
    """The job in a line. Raises msgspec.MsgspecError when it is none: only a bug writes such a line."""
    return msgspec.json.decode(line, type=Job | TrialJob)


def decode_answer(line: bytes) -> Answer:
    """The answer in a line. Raises msgspec.MsgspecError when it is none."""
    return msgspec.json.decode(line, type=Done | Failed | Verdict)
