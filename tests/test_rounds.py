"""The server's round machine: when updates count and when rounds close."""

from dataclasses import replace

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefl.plan import Plan
from edgefl.server.rounds import Accept, Refuse, Repeat, Rounds, aggregated, due, judge, stored, widened

PLAN = Plan(rounds=5, cohort=3, quorum=2, deadline=60.0, staleness=2)


def rounds(number: int = 1, plan: Plan = PLAN) -> Rounds:
    """A training in its round `number`, opened at time 0."""
    return Rounds(plan, number, plan.rounds, 0.0)


def replace_plan(rounds: int) -> Plan:
    """The plan with another number of rounds."""
    return msgspec.structs.replace(PLAN, rounds=rounds)


def test_round_closes_when_the_cohort_is_complete() -> None:
    """K updates close a round at once; fewer wait."""
    state = rounds()
    for device in ("a", "b"):
        state = stored(state, (device, 1))
        assert not due(state, 1.0)
    assert due(stored(state, ("c", 1)), 1.0)


def test_a_round_without_a_quorum_is_opened_to_more_devices() -> None:
    """Each deadline that passes doubles the fraction, up to all devices; with a quorum, and after the end, it is the plan's."""
    state = rounds(plan=msgspec.structs.replace(PLAN, fraction=0.2))
    assert [widened(state, now) for now in (-5.0, 59.9, 60.0, 120.0, 180.0, 1e12)] == [0.2, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert widened(stored(stored(state, ("a", 1)), ("b", 1)), 1e6) == 0.2
    assert widened(replace(state, finished=True), 1e6) == 0.2


def test_deadline_closes_a_round_with_a_quorum_and_not_without() -> None:
    """After the deadline a quorum is enough, and less than a quorum waits on."""
    one = stored(rounds(), ("a", 1))
    assert not due(one, 1000.0)
    two = stored(one, ("b", 1))
    assert not due(two, 59.9)
    assert due(two, 60.0)


def test_update_counts_once() -> None:
    """The same device and round a second time is a repetition, before and after the aggregation."""
    state = stored(rounds(), ("a", 1))
    assert judge(state, ("a", 1)) == Repeat()
    assert judge(aggregated(state, 1.0), ("a", 1)) == Repeat()


def test_late_update_counts_within_the_plans_staleness() -> None:
    """An update of an earlier round counts in the current one, up to the limit."""
    assert judge(rounds(3), ("a", 1)) == Accept(late=2)
    assert isinstance(judge(rounds(4), ("a", 1)), Refuse)


def test_update_of_a_round_that_was_never_opened_is_refused() -> None:
    """Nobody can train a round before it exists."""
    assert isinstance(judge(rounds(1), ("a", 2)), Refuse)


def test_there_is_no_round_before_the_first() -> None:
    """Rounds count from 1, however much lateness the plan allows."""
    assert isinstance(judge(rounds(1), ("a", 0)), Refuse)


def test_repetition_is_known_even_after_the_end() -> None:
    """What has counted is a repetition and no refusal, as long as it is remembered, also when the training is over."""
    state = aggregated(stored(rounds(5), ("a", 5)), 1.0)
    assert state.finished
    assert judge(state, ("a", 5)) == Repeat()


def test_memory_is_bounded_by_the_staleness() -> None:
    """After any number of rounds only the updates that could still come again are remembered."""
    state = rounds(plan=replace_plan(rounds=1000))
    for number in range(1, 500):
        for device in "abc":
            state = stored(state, (device, number))
        state = aggregated(state, float(number))
    assert len(state.counted) == 3 * (PLAN.staleness + 1)
    assert all(judge(state, key) == Repeat() for key in state.counted)


def test_training_ends_after_its_last_round() -> None:
    """The last aggregation finishes the training, and nothing counts afterwards."""
    state = aggregated(rounds(5), 1.0)
    assert state.finished
    assert not due(state, 1e9)
    assert isinstance(judge(state, ("a", 5)), Refuse)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 6)), max_size=60))
def test_every_update_is_aggregated_at_most_once(arrivals: list[tuple[str, int]]) -> None:
    """In whatever order updates arrive and repeat, none is in two aggregations."""
    state, aggregations = replace(rounds(), plan=PLAN), []
    for now, key in enumerate(arrivals):
        if isinstance(judge(state, key), Accept):
            state = stored(state, key)
        if due(state, float(now)):
            aggregations += sorted(state.buffer)
            state = aggregated(state, float(now))
    assert len(aggregations) == len(set(aggregations))
