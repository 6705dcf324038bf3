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
from edgefl.compress.search import is_proved, not_refused, proved_excess, worth_a_run
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


def busy(
    rank: int, memory: int, step: int, took: tuple[float, float] | None = None, *, ended: bool = False, guessed: float = 0.0
) -> Candidate:
    """A candidate that is estimated to take so many MiB and so much of a step, and is as accurate as its rank.

    `took` is what it took in MiB and ms when it was run. The step of any other, and of one that was ended, is `guessed`.
    """
    work = Work(memory * MIB // 4, (("a", 1000 * step),))
    memory_took, step_took = took or (1000.0, guessed)
    demand = Demand(memory_took * MIB, guessed if ended else step_took, measured=took is not None and not ended, bound=ended)
    return Candidate(
        Structure(f"s{rank}", 1.0, Layout((Tensor("a", (10, 10)),)), work), Precision.FP32, 0, rank / 100, demand=demand
    )


def test_a_run_that_was_ended_for_its_memory_says_nothing_of_steps() -> None:
    """Its own step is an estimate, which refuses neither itself in a larger budget nor another that takes less memory."""
    fits, ended, other = busy(1, 1, 1, (80, 5)), busy(3, 100, 10, (400, 0), ended=True, guessed=50), busy(2, 2, 12, guessed=60)
    budget = Budget(STORAGE, 120 * MIB, 30.0)
    assert worth_a_run([ended, other, fits], budget, fits) == other
    assert proved_excess(ended, budget) == ("memory",)
    roomy = Budget(STORAGE, 500 * MIB, 30.0)
    assert not is_proved(ended, roomy)
    assert worth_a_run([ended, fits], roomy, fits) == ended
    measured = replace(ended, demand=Demand(100 * MIB, 50.0, measured=True))
    assert worth_a_run([measured, other, fits], budget, fits) is None


def test_what_is_only_hoped_for_is_refused_by_proofs_alone() -> None:
    """It need not be on offer: however much it is thought to take it might fit, unless something smaller does not."""
    hoped = offer(20, guessed=5000)
    assert not_refused([hoped], [offer(5, 80), offer(10)], LIMIT) == [hoped]
    assert not_refused([hoped], [offer(5, 80), offer(10, 150)], LIMIT) == []
    assert not_refused([hoped], [], Budget(100, 100 * MIB)) == []


RUNS = st.none() | st.tuples(st.integers(80, 200), st.integers(1, 100), st.booleans())
"""What a candidate took in MiB and ms, and whether it was ended there; None if it was not run."""


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40), RUNS, st.integers(0, 100)), min_size=1, max_size=8),
    st.none() | st.integers(20, 80),
)
def test_what_is_left_is_refused_by_a_proof(
    drawn: list[tuple[int, int, tuple[int, int, bool] | None, int]], limit: int | None
) -> None:
    """If nothing is worth a run, what is better than the choice and not proved takes by estimate what proved to be too much.

    Proofs of memory are of what was run to its end or ended above the limit; those of steps of what was run to its end.
    """
    budget, offers, memories, steps = Budget(STORAGE, 100 * MIB, limit), [], [], []
    for rank, (memory, step, run, guessed) in enumerate(drawn):
        ended = run is not None and run[2]
        offers.append(busy(rank, memory, step, run and run[:2], ended=ended, guessed=guessed))
        if run is not None and run[0] > 100:
            memories.append(memory)
        if run is not None and not ended and limit is not None and run[1] > limit:
            steps.append(step)
    known = [run is not None and (not run[2] or run[0] > 100) for _, _, run, _ in drawn]
    assert [is_proved(one, budget) for one in offers] == known
    fitting = [rank for rank, one in enumerate(offers) if known[rank] and not budget.excess(one.cost)]
    best = max(fitting, default=-1)
    left = [rank for rank in range(best + 1, len(offers)) if not known[rank]]
    found = worth_a_run(offers, budget, offers[best] if fitting else None)
    if found is not None:
        assert offers.index(found) in left
        return
    for memory, step, _, _ in (drawn[rank] for rank in left):
        assert any(memory >= other for other in memories) or any(step >= other for other in steps)
