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
    predicted: float | None = None
    reason: str = ""


COLUMNS = ("profile", "engine", "variant", "parameters", "bytes", "footprint", "budget", "accuracy")


def table(pushed: Iterable[PushedVariant]) -> tuple[tuple[str, ...], ...]:
    """The outcome as rows of text in the order of `COLUMNS`; an accuracy that was not measured is `-`."""
    return tuple(
        (
            *(v.profile, v.engine, v.variant),
            *(f"{n:,}" for n in (v.parameters, v.bytes, v.footprint, v.budget)),
            "-" if v.accuracy is None else f"{100 * v.accuracy:.2f} %",
        )
        for v in pushed
    )
