"""What is worth a run: estimates refuse nothing, a proof about something smaller does, one about something larger forgives."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefl.codec.weights import Precision
from edgefl.compress.budget import Candidate, Structure
from edgefl.compress.cost import Work
from edgefl.compress.evidence import Demand
from edgefl.compress.planner import Budget
from edgefl.compress.search import is_proved, worth_a_run
from edgefl.layout import Layout, Tensor

MIB = 1 << 20
STORAGE = 10**9
LIMIT = Budget(STORAGE, 100 * MIB)


def offer(
    rows: int, took: float | None = None, *, ended: bool = False, guessed: float = 200, precision: Precision = Precision.FP32
):
    """A candidate that is estimated to take a MiB for each of its rows, and as accurate as it is large.

    `took` is what it took in MiB when it was run; None if it was not, then `guessed` is what it is thought to take.
    """
    structure = Structure(f"s{rows}", 1.0, Layout((Tensor("a", (rows, 10)),)), Work(rows * MIB // 4, ()))
    demand = Demand((guessed if took is None else took) * MIB, 0.0, measured=took is not None and not ended, bound=ended)
    return Candidate(structure, precision, 0, rows / 1000, demand=demand)


def test_without_proofs_the_least_demanding_is_worth_a_run() -> None:
    """However much everything is thought to take."""
    offers = [offer(3, guessed=300), offer(2, guessed=250), offer(1, guessed=260)]
    assert worth_a_run(offers, LIMIT, None) == offers[1]


def test_a_proof_refuses_what_is_estimated_to_take_no_less() -> None:
    """And nothing that is estimated to take less, or that is no better than what fits."""
    failed, fits = offer(20, 150), offer(5, 80)
    offers = [offer(30), failed, offer(10), fits, offer(4, guessed=10)]
    assert worth_a_run(offers, LIMIT, fits) == offers[2]
    assert worth_a_run([one for one in offers if one != offers[2]], LIMIT, fits) is None
    assert worth_a_run([offer(30), offer(20, 150)], LIMIT, None) is None


def test_a_proof_that_something_larger_fits_forgives_one_that_something_smaller_does_not() -> None:
    """Then the order of the estimates is wrong there, and only a run tells."""
    between, fits, failed = offer(20), offer(30, 90), offer(10, 150)
    fits = replace(fits, accuracy=0.0)
    assert worth_a_run([between, fits, failed], LIMIT, fits) == between
    assert worth_a_run([between, failed, offer(1, 90)], LIMIT, None) is None


@pytest.mark.parametrize(("took", "ended", "open_"), [(103, False, True), (106, False, False), (101, True, False)])
def test_near_the_limit_a_proof_says_little_of_the_same_estimate(took: float, ended: bool, open_: bool) -> None:
    """Unless the run was ended: nobody knows how much further it would have gone."""
    other = offer(20, precision=Precision.INT8)
    assert (worth_a_run([offer(20, took, ended=ended), other], LIMIT, None) == other) is open_


def test_what_was_ended_below_the_limit_is_open() -> None:
    """A smaller profile's rehearsal was ended there; that says nothing about this one."""
    one = offer(20, 60, ended=True)
    assert not is_proved(one, LIMIT)
    assert is_proved(one, Budget(STORAGE, 50 * MIB))
    assert worth_a_run([one], LIMIT, None) == one
    assert worth_a_run([one], Budget(STORAGE, 50 * MIB), None) is None


def test_what_cannot_be_stored_is_not_run() -> None:
    """Storage is computed, not estimated."""
    assert worth_a_run([offer(20)], Budget(100, 100 * MIB), None) is None


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.none() | st.integers(80, 200)), min_size=1, max_size=8, unique_by=lambda o: o[0])
)
def test_what_is_left_is_refused_by_a_proof(drawn: list[tuple[int, int | None]]) -> None:
    """If nothing is worth a run, all that is better than the choice and was not run is estimated to take as much as a failure."""
    offers = [offer(rows, took) for rows, took in drawn]
    fitting = [one for one in offers if is_proved(one, LIMIT) and not LIMIT.excess(one.cost)]
    winner = max(fitting, key=lambda one: one.accuracy, default=None)
    failed = [rows for rows, took in drawn if took is not None and took > 100]
    if worth_a_run(offers, LIMIT, winner) is None:
        left = [rows for rows, took in drawn if took is None and (winner is None or rows / 1000 > winner.accuracy)]
        assert all(any(rows >= other for other in failed) for rows in left)
