"""The outcome of a push, as values and as a table. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PushedVariant:
    """One row of the outcome.

    Attributes:
        model, version: what was pushed.
        profile, engine: for which boards.
        variant: name, for example `w0.5-int8`.
        width, precision, parameters: what it is.
        bytes: of all its files, on disk.
        footprint: bytes that the board needs at most, with working state (`edgefl.compress.budget`).
        budget: bytes that the profile allows.
        accuracy: in [0, 1] on the hold-out examples with decoded weights; None without them.
        peak_bytes: resident memory of the board's trainer with it, measured on the pushing machine.
        memory_mb: MiB that the profile allows that.
        step_ms: of a training step on the pushing machine; 0 where the boards do not train.
        board_step_ms: the same on the board, if the profile knows how much slower that is; otherwise None.
        int8_bytes: of its `serve` graph; None if it has none, as in the next two.
        int8_accuracy: as `accuracy`.
        int8_speedup: how many times faster than float32 it answers on the pushing machine.
        predicted: the accuracy that it was chosen for; None without hold-out examples that tell something.
        reason: why this one.
    """

    model: str
    version: int
    profile: str
    engine: str
    variant: str
    width: float
    precision: str
    parameters: int
    bytes: int
    footprint: int
    budget: int
    accuracy: float | None
    peak_bytes: int
    memory_mb: int
    step_ms: float
    board_step_ms: float | None
    int8_bytes: int | None = None
    int8_accuracy: float | None = None
    int8_speedup: float | None = None
    predicted: float | None = None
    reason: str = ""


COLUMNS = (
    "profile",
    "engine",
    "variant",
    "parameters",
    "bytes",
    "footprint",
    "budget",
    "accuracy",
    "peak MiB",
    "step ms",
    "int8",
)


def table(pushed: Iterable[PushedVariant]) -> tuple[tuple[str, ...], ...]:
    """The outcome as rows of text in the order of `COLUMNS`; an accuracy that was not measured is `-`.

    The peak is followed by what the profile allows. Step times are of the pushing machine, then the board's, if it is known; `-`
    where boards do not train.
    """
    return tuple(
        (
            *(v.profile, v.engine, v.variant),
            *(f"{n:,}" for n in (v.parameters, v.bytes, v.footprint, v.budget)),
            "-" if v.accuracy is None else f"{100 * v.accuracy:.2f} %",
            f"{v.peak_bytes / 2**20:.0f}/{v.memory_mb}",
            _step(v),
            _int8(v),
        )
        for v in pushed
    )


def _step(v: PushedVariant) -> str:
    if not v.step_ms:
        return "-"
    return f"{v.step_ms:.2f} here" + ("" if v.board_step_ms is None else f", {v.board_step_ms:.1f} there")


def _int8(v: PushedVariant) -> str:
    if v.int8_bytes is None or v.int8_accuracy is None or v.int8_speedup is None:
        return "-"
    return f"{v.int8_bytes:,} bytes, {100 * v.int8_accuracy:.2f} %, {v.int8_speedup:.1f}x as fast"
