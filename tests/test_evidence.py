"""Laws of what runs say: a measured figure stands, the others are scaled in order, and a bound is no measurement."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefl.compress.cost import BASE
from edgefl.compress.evidence import Evidence, Run
from edgefl.compress.planner import Cost

MIB = 1 << 20
COSTS = st.builds(
    lambda memory, step: Cost(1, BASE + memory * MIB, step), st.integers(2, 500), st.floats(0.01, 100, allow_nan=False)
)


def test_without_runs_estimates_stand_and_times_are_unknown() -> None:
    """Nothing is excluded for its time before anything has been timed."""
    demand = Evidence().demand("a", Cost(1, BASE + MIB, 5.0))
    assert (demand.memory, demand.step, demand.measured) == (BASE + MIB, 0.0, False)


def test_what_was_run_costs_what_it_took_and_the_board_takes_longer() -> None:
    """The last run of a candidate counts, in the board's milliseconds; a precision of the same structure takes the same."""
    estimated = Cost(1, BASE + 10 * MIB, 2.0)
    evidence = Evidence().after(Run("a", estimated, 70 * MIB, 1.0)).after(Run("a", estimated, BASE + 30 * MIB, 4.0))
    own = evidence.demand("a", estimated, slowdown=10.0)
    assert (own.memory, own.step, own.measured) == (BASE + 30 * MIB, 40.0, True)
    other = evidence.demand("b", estimated)
    assert (other.memory, other.step, other.measured) == (BASE + 30 * MIB, 4.0, False)
    assert evidence.demand("c", Cost(1, BASE + 5 * MIB, 1.0)).memory == BASE + 15 * MIB
    assert evidence.demand("c", Cost(1, BASE + 5 * MIB, 1.0)).step == pytest.approx(2.0)


def test_a_run_that_was_ended_is_a_bound() -> None:
    """It takes at least what it had reached, says nothing of times, and counts as not measured."""
    evidence = Evidence().after(Run("a", Cost(1, BASE + 10 * MIB, 2.0), BASE + 100 * MIB, 0.0, ended=True))
    demand = evidence.demand("a", Cost(1, BASE + 10 * MIB, 2.0))
    assert (demand.memory, demand.step, demand.measured, demand.bound) == (BASE + 100 * MIB, 0.0, False, True)
    assert evidence.demand("b", Cost(1, BASE + 20 * MIB, 2.0)).memory == BASE + 200 * MIB


@settings(max_examples=100, deadline=None)
@given(COSTS, st.integers(1, 900), st.floats(0.1, 50), COSTS, COSTS)
def test_one_run_keeps_the_order_of_the_estimates(ran: Cost, memory: int, step: float, one: Cost, other: Cost) -> None:
    """What is estimated to take more than something else is still taken to take as much or more."""
    evidence = Evidence().after(Run("ran", ran, BASE + memory * MIB, step))
    first, second = evidence.demand("one", one), evidence.demand("other", other)
    assert (first.memory <= second.memory * 1.000001) or one.memory > other.memory
    assert (first.step <= second.step * 1.000001) or one.step > other.step


def test_between_two_runs_the_line_decides_and_beyond_them_it_goes_on() -> None:
    """A refusal makes others dearer and a success cheaper; what every candidate takes is not taken for a part of its size."""
    ten, forty = (Cost(1, BASE + mib * MIB, mib) for mib in (10, 40))
    evidence = Evidence().after(Run("forty", forty, BASE + 200 * MIB, 30.0)).after(Run("ten", ten, BASE + 80 * MIB, 15.0))

    def demand(mib: float) -> tuple[float, float]:
        found = evidence.demand("other", Cost(1, BASE + mib * MIB, mib))
        return (found.memory - BASE) / MIB, found.step

    assert demand(25) == pytest.approx((140.0, 22.5))
    assert demand(5) == pytest.approx((60.0, 12.5))
    assert demand(50) == pytest.approx((240.0, 35.0))
    steep = Evidence().after(Run("ten", ten, BASE + 10 * MIB, 0.0)).after(Run("forty", forty, BASE + 400 * MIB, 0.0))
    assert steep.demand("other", Cost(1, BASE + 5 * MIB)).memory == pytest.approx(BASE + 5 * MIB)
    assert steep.demand("other", Cost(1, BASE + 80 * MIB)).memory == pytest.approx(BASE + 800 * MIB)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(COSTS, st.integers(1, 900)), min_size=1, max_size=5), COSTS, COSTS)
def test_runs_in_order_keep_the_order_of_the_estimates(ran: list[tuple[Cost, int]], one: Cost, other: Cost) -> None:
    """As many as there are, if what was estimated to take more took more."""
    evidence, costs, took = Evidence(), sorted((c for c, _ in ran), key=lambda c: c.memory), sorted(m for _, m in ran)
    for number, (cost, memory) in enumerate(zip(costs, took, strict=True)):
        evidence = evidence.after(Run(str(number), cost, BASE + memory * MIB, 0.0))
    small, large = sorted((one, other), key=lambda cost: cost.memory)
    assert evidence.demand("small", small).memory <= evidence.demand("large", large).memory * 1.000001
