"""Why each profile got its variant: the frontier of what there was, as values and as a table. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from edgefl.compress.budget import Candidate
from edgefl.compress.planner import Budget, Planned


@dataclass(frozen=True, slots=True)
class Considered:
    """One variant that could have been made.

    Attributes:
        variant: name.
        storage, memory: bytes, the memory estimated; step: milliseconds, estimated.
        predicted: accuracy in [0, 1]; None without held-out examples that tell something.
        measured: of the decoded weights in the exported graph; None for what was not made.
        exceeds: by how much it is over each bound of the profile; empty if it fits.
        chosen: whether it is the profile's.
    """

    variant: str
    storage: float
    memory: float
    step: float
    predicted: float | None
    measured: float | None
    exceeds: Mapping[str, float]
    chosen: bool


@dataclass(frozen=True, slots=True)
class Explanation:
    """How a profile's variant was chosen.

    Attributes:
        profile, engine: for which boards.
        storage, memory, step: what the profile allows, None for no bound.
        basis: what predictions rest on.
        reason: why this one.
        frontier: what nothing else beats at no more cost, the best first.
    """

    profile: str
    engine: str
    storage: float
    memory: float | None
    step: float | None
    basis: str
    reason: str
    frontier: tuple[Considered, ...]


def explain(
    profile: str, engine: str, budget: Budget, planned: Planned[Candidate], measured: Mapping[str, float], basis: str
) -> Explanation:
    """The explanation of a plan; `measured` holds accuracies of what was made, by name."""
    rows = tuple(
        Considered(
            one.name,
            one.cost.storage,
            one.cost.memory,
            one.cost.step,
            one.accuracy,
            measured.get(one.name),
            {str(r): value for r, value in budget.excess(one.cost).items()},
            one == planned.winner,
        )
        for one in planned.frontier
    )
    return Explanation(profile, engine, budget.storage, budget.memory, budget.step, basis, planned.reason, rows)


COLUMNS = ("", "variant", "storage", "memory", "step", "predicted", "measured", "exceeds")


def table(explanation: Explanation) -> tuple[tuple[str, ...], ...]:
    """The frontier as rows of text in the order of `COLUMNS`; `*` marks the choice, what is not known is `-`."""
    return tuple(
        (
            "*" if row.chosen else "",
            row.variant,
            f"{row.storage:,.0f}",
            f"{row.memory / 2**20:.0f} MiB",
            f"{row.step:.2f} ms",
            _percent(row.predicted),
            _percent(row.measured),
            ", ".join(f"{resource} by {_amount(resource, value)}" for resource, value in row.exceeds.items()) or "-",
        )
        for row in explanation.frontier
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _amount(resource: str, value: float) -> str:
    return f"{value:.3g} ms" if resource == "step" else f"{value:,.0f}"


def limits(explanation: Explanation) -> str:
    """The budget in words."""
    words = [f"at most {explanation.storage:,.0f} bytes of storage"]
    if explanation.memory is not None:
        words.append(f"{explanation.memory / 2**20:.0f} MiB of memory")
    if explanation.step is not None:
        words.append(f"{explanation.step:g} ms for a step")
    return ", ".join(words)
