"""Why each profile got its variant: the frontier of what there was, as values and as a table. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgefl.compress.budget import Candidate
from edgefl.compress.planner import Budget, Planned


@dataclass(frozen=True, slots=True)
class Considered:
    """One variant that could have been made.

    Attributes:
        variant: name.
        storage, memory: bytes; step: milliseconds, on the board where the profile says how much slower it is, otherwise where
            the push runs; 0 where the boards do not train.
        run: whether memory and step were measured by running it; otherwise they are estimates, corrected by what was run.
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
    run: bool = False


@dataclass(frozen=True, slots=True)
class Explanation:
    """How a profile's variant was chosen.

    Attributes:
        profile, engine: for which boards.
        storage, memory, step: what the profile allows, None for no bound.
        basis: what predictions rest on.
        reason: why this one.
        frontier: what nothing else beats at no more cost, the best first.
        refused: what was run, for this profile or another one, and is too much for this one, in that order.
    """

    profile: str
    engine: str
    storage: float
    memory: float | None
    step: float | None
    basis: str
    reason: str
    frontier: tuple[Considered, ...]
    refused: tuple[Considered, ...] = ()


def explain(
    profile: str,
    engine: str,
    budget: Budget,
    planned: Planned[Candidate],
    measured: Mapping[str, float],
    basis: str,
    refused: Sequence[Candidate] = (),
) -> Explanation:
    """The explanation of a plan; `measured` holds accuracies of what was made, by name."""

    def considered(one: Candidate) -> Considered:
        return Considered(
            one.name,
            one.cost.storage,
            one.cost.memory,
            one.cost.step,
            one.accuracy,
            measured.get(one.name),
            {str(r): value for r, value in budget.excess(one.cost).items()},
            one == planned.winner,
            one.demand is not None and one.demand.measured,
        )

    rows, out = tuple(map(considered, planned.frontier)), tuple(map(considered, refused))
    return Explanation(profile, engine, budget.storage, budget.memory, budget.step, basis, planned.reason, rows, out)


COLUMNS = ("", "variant", "storage", "memory", "step", "predicted", "measured", "exceeds")


def table(explanation: Explanation) -> tuple[tuple[str, ...], ...]:
    """The frontier as rows of text in the order of `COLUMNS`, then what was run and refused.

    `*` marks the choice, `x` what was refused; figures with `~` are estimates, what is not known is `-`.
    """
    marked = [("*" if row.chosen else "", row) for row in explanation.frontier]
    shown = {row.variant for _, row in marked}
    out = {row.variant for row in explanation.refused}
    marked = [(mark or ("x" if row.variant in out or (row.run and row.exceeds) else ""), row) for mark, row in marked]
    return tuple(_cells(mark, row) for mark, row in (*marked, *(("x", r) for r in explanation.refused if r.variant not in shown)))


def _cells(mark: str, row: Considered) -> tuple[str, ...]:
    about = "" if row.run else "~"
    return (
        mark,
        row.variant,
        f"{row.storage:,.0f}",
        f"{about}{row.memory / 2**20:.0f} MiB",
        f"{about}{row.step:.2f} ms" if row.step else "-",
        _percent(row.predicted),
        _percent(row.measured),
        ", ".join(f"{resource} by {_amount(resource, value)}" for resource, value in row.exceeds.items()) or "-",
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
