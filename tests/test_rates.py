"""Learning rates and warm-up: schedules, bounds, and the curvature of a function whose curvature is known."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefl.plan import Plan
from edgefl.rates import (
    CURVATURE_LEAST,
    LEAST,
    MOST,
    learning_rate_at,
    mutual_at,
    rate_by_curvature,
    rate_by_loss,
    smoothness,
    sparsity_at,
)
from edgefl.wire.tasks import task_of


def test_the_rate_decays_by_round() -> None:
    """The first round has the plan's rate, each later one the decayed rate, and it never reaches zero."""
    plan = Plan(learning_rate=0.2, decay=0.5)
    assert [learning_rate_at(plan, number) for number in (1, 2, 3)] == [0.2, 0.1, 0.05]
    assert learning_rate_at(plan, 100_000) > 0.0
    assert learning_rate_at(Plan(learning_rate=0.3), 500) == 0.3


def test_the_warm_up_falls_by_equal_factors_to_the_plans_sparsity() -> None:
    """DGC: from 1/4 by equal factors; after the warm-up, and without one, it is the plan's."""
    plan = Plan(sparsity=0.001, warmup=4)
    seen = [sparsity_at(plan, number) for number in range(1, 7)]
    assert seen[0] == 0.25
    assert seen[4:] == [0.001, 0.001]
    factors = [b / a for a, b in itertools.pairwise(seen[:5])]
    assert max(factors) - min(factors) < 1e-12
    assert sparsity_at(Plan(sparsity=0.02), 1) == 0.02
    assert sparsity_at(Plan(sparsity=0.5, warmup=9), 1) == 0.5


def test_exits_begin_to_learn_of_each_other_slowly() -> None:
    """The weight rises over the ramp's rounds from nearly nothing to 1, which it keeps; without a ramp it is 1."""
    plan = Plan(ramp=10)
    seen = [mutual_at(plan, number) for number in range(1, 13)]
    assert seen[0] == pytest.approx(math.exp(-5.0))
    assert seen[5] == pytest.approx(math.exp(-1.25))
    assert seen[10:] == [1.0, 1.0]
    assert all(a < b for a, b in itertools.pairwise(seen[:11]))
    assert mutual_at(Plan(), 1) == 1.0
    assert task_of(plan, 6).mutual == seen[5]


@given(st.floats(1e-6, 10.0), st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_the_losss_factor_is_bounded_and_rises(rate: float, own: float, mean: float) -> None:
    """Who is behind takes larger steps, within the bounds."""
    adapted = rate_by_loss(rate, own, mean)
    assert LEAST * rate <= adapted <= MOST * rate
    assert rate_by_loss(rate, 3 * own, mean) >= adapted


@pytest.mark.parametrize(("own", "mean"), [(0.0, 1.0), (1.0, 0.0), (math.nan, 1.0), (1.0, math.inf)])
def test_a_loss_that_is_not_known_changes_nothing(own: float, mean: float) -> None:
    """Without both losses the rate is the task's."""
    assert rate_by_loss(0.1, own, mean) == 0.1


def test_the_smoothness_of_a_parabola_is_its_curvature() -> None:
    """For f(w) = c/2 |w|^2 two gradient steps give c, whatever the rate."""
    start = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    for curvature in (0.5, 4.0, 40.0):
        for rate in (0.01, 0.1):
            first = (start - rate * curvature * start).astype(np.float32)
            second = (first - rate * curvature * first).astype(np.float32)
            assert math.isclose(smoothness(start, first, second, rate), curvature, rel_tol=1e-3)


def test_the_curvature_limits_the_rate_and_never_raises_it() -> None:
    """A flat spot leaves the rate, a sharp one takes 1/L, an exploding probe the smallest share."""
    assert rate_by_curvature(0.1, 0.0) == rate_by_curvature(0.1, 5.0) == rate_by_curvature(0.1, math.nan) == 0.1
    assert rate_by_curvature(0.1, 20.0) == 0.05
    assert rate_by_curvature(0.1, math.inf) == 0.1 * CURVATURE_LEAST
    zeros, huge = np.zeros(3, np.float32), np.full(3, np.inf, np.float32)
    assert smoothness(zeros, zeros, zeros, 0.1) == 0.0
    assert smoothness(zeros, huge, huge, 0.1) == math.inf
