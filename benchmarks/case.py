"""What a simulated result is made of: cases that can be compared, because each differs from its base in as little as possible."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from edgefl.plan import Plan
from edgefl.simulate.experiment import Experiment

PAIR_BYTES = 8
"""Of an index and a float32 value."""


@dataclass(frozen=True, slots=True)
class Case:
    """One line of a table.

    Attributes:
        label: in the rows.
        experiment: with seed 0.
        pairs: whether the bytes are those of index and float32 value for every sent coordinate.
        central: whether one machine trains on all data instead.
    """

    label: str
    experiment: Experiment
    pairs: bool = False
    central: bool = False


@dataclass(frozen=True, slots=True)
class Study:
    """A result by name: its cases, and what they were to reach, in words."""

    goal: str
    cases: Callable[[], Sequence[Case]]
    curves: bool = False
    """Whether every evaluation is a row, not only the last."""


def case(
    label: str, base: Experiment, *, pairs: bool = False, central: bool = False, plan: Plan | None = None, **other: Any
) -> Case:
    """A case that differs from a base in these fields."""
    return Case(label, msgspec.structs.replace(base, name=label, plan=plan or base.plan, **other), pairs, central)


def with_plan(base: Experiment, **fields: Any) -> Plan:
    """The plan of a base with other values."""
    return msgspec.structs.replace(base.plan, **fields)


def dense(base: Experiment) -> Plan:
    """Plain federated averaging: every coordinate, in 8 bits, which costs no accuracy."""
    return with_plan(base, sparsity=1.0, bits=8, context=False)
