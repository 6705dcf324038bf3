"""What every study of `benchmarks.results` is: something that yields rows."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

Row = dict[str, object]
"""One measurement: `label`, `seed`, `accuracy`, and what else the study measures."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line asks for.

    Attributes:
        seeds: how many.
        workers: processes, where a study uses any.
        only: part of the labels that are wanted; empty for all.
    """

    seeds: int
    workers: int
    only: str


class Measured(Protocol):
    """A study: what was to be reached, how to measure it, and how to show it."""

    @property
    def goal(self) -> str:
        """In words."""
        ...

    def rows(self, asked: Asked) -> Iterator[Sequence[Row]]:
        """Measure; yields rows as they come. Raises EdgeflError."""
        ...

    def settings(self) -> Mapping[str, object]:
        """What the numbers depend on, by label, for the report."""
        ...

    def show(self, rows: Sequence[Row]) -> None:
        """Print a table of all rows."""
        ...


def by_label(rows: Sequence[Row]) -> Mapping[str, Sequence[Row]]:
    """The last row of each seed, by label, in order of appearance."""
    last: dict[str, dict[object, Row]] = {}
    for row in rows:
        last.setdefault(str(row["label"]), {})[row["seed"]] = row
    return {label: list(found.values()) for label, found in last.items()}


def mean(rows: Sequence[Row], field: str) -> float:
    """Over rows; a field that is missing or None counts as 0."""
    return statistics.fmean(float(str(row.get(field, 0) or 0)) for row in rows)


def spread(rows: Sequence[Row], field: str) -> float:
    """Standard deviation over rows."""
    return statistics.pstdev([float(str(row[field])) for row in rows])
