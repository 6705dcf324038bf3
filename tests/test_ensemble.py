"""The ensemble's arithmetic: what several models believe together, the weights that make it better, and lessons made of it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefl.aggregate.ensemble import (
    LEAST,
    _penalised,
    accuracy,
    fitted,
    lessons,
    log_loss,
    pooled,
    probabilities,
    uniform,
)
from edgefl.errors import DataError


def beliefs_of(seed, members=3, count=40, classes=4):
    """Random probabilities of shape `(members, count, classes)`, and labels."""
    rng = np.random.default_rng(seed)
    return probabilities(rng.normal(scale=2.0, size=(members, count, classes)).astype(np.float32)), rng.integers(
        0, classes, count
    )


def penalised(beliefs, labels, weights, strength=1.0):
    """What a fit makes small."""
    return _penalised(beliefs, labels, weights, strength)[0]


def test_probabilities_stand_any_logits() -> None:
    """Softmax of huge and of equal logits is what it should be, and never overflows."""
    found = probabilities(np.array([[1e30, 0.0], [5.0, 5.0], [-1e30, 1e30]], dtype=np.float32))
    assert found.tolist() == [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]


def test_uniform_weights_are_the_mean() -> None:
    """With equal weights the ensemble believes the average of its members."""
    beliefs, _ = beliefs_of(0)
    assert pooled(beliefs, uniform(3, 4)) == pytest.approx(beliefs.mean(0), abs=1e-9)


@given(seed=st.integers(0, 1000), members=st.integers(1, 5), classes=st.integers(2, 6))
@settings(max_examples=15, deadline=None)
def test_a_fit_is_never_worse_than_uniform_weights(seed, members, classes) -> None:
    """Its penalised loss on its own examples is at most that of uniform weights, and no weight is negative."""
    beliefs, labels = beliefs_of(seed, members, 30, classes)
    weights = fitted(beliefs, labels)
    assert penalised(beliefs, labels, weights) <= penalised(beliefs, labels, uniform(members, classes)) + 1e-12
    assert weights.min() >= 0.0
    assert pooled(beliefs, weights).sum(1) == pytest.approx(np.ones(30))


def test_the_gradient_is_the_slope_of_the_loss() -> None:
    """It agrees with differences of the penalised loss in every coordinate."""
    beliefs, labels = beliefs_of(3)
    weights = np.random.default_rng(4).uniform(0.1, 1.0, (3, 4))
    _, slope = _penalised(beliefs, labels, weights, 2.0)
    for place in np.ndindex(weights.shape):
        step = np.zeros_like(weights)
        step[place] = 1e-6
        change = penalised(beliefs, labels, weights + step, 2.0) - penalised(beliefs, labels, weights - step, 2.0)
        assert slope[place] == pytest.approx(change / 2e-6, abs=1e-6)


def test_weights_find_who_knows_which_class() -> None:
    """Two members that each know half of the classes and are sure of the rest: together they know more than their mean."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 400)
    logits = rng.normal(scale=0.3, size=(2, 400, 4)).astype(np.float32)
    for member, known in ((0, (0, 1)), (1, (2, 3))):
        sure = np.isin(labels, known)
        logits[member, sure, labels[sure]] += 2.0
        # Of what a member has never seen it is sure, and wrong: it calls it one of its own classes.
        logits[member, ~sure, known[0]] += 3.0
    beliefs = probabilities(logits)
    train, test = slice(0, 200), slice(200, 400)
    weights = fitted(beliefs[:, train], labels[train])
    better, mean = pooled(beliefs[:, test], weights), pooled(beliefs[:, test], uniform(2, 4))
    assert log_loss(better, labels[test]) < log_loss(mean, labels[test])
    assert accuracy(better, labels[test]) >= accuracy(mean, labels[test])


def test_few_examples_do_not_silence_a_member() -> None:
    """One labelled example leaves every weight near the uniform one."""
    beliefs, labels = beliefs_of(1, count=1)
    assert fitted(beliefs, labels) == pytest.approx(uniform(3, 4), abs=0.5)
    assert fitted(beliefs, labels, strength=1000.0) == pytest.approx(uniform(3, 4), abs=0.01)


@given(seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_lessons_say_what_the_probabilities_say(seed) -> None:
    """An example's weights sum to 1 and are its probabilities, as far as these are not tiny; none is without a lesson."""
    beliefs = beliefs_of(seed)[0][0]
    found = lessons(beliefs)
    said = np.zeros_like(beliefs)
    said[found.rows, found.labels] = found.weights
    assert said.sum(1) == pytest.approx(np.ones(len(beliefs)), abs=1e-6)
    assert np.abs(said - beliefs).max() < LEAST * beliefs.shape[1]
    assert set(found.rows.tolist()) == set(range(len(beliefs)))


def test_what_cannot_be_weighed_is_refused() -> None:
    """No examples, or labels beyond the classes, are an error of the tree."""
    beliefs, labels = beliefs_of(0)
    for wrong in (labels[:0], labels[:-1], labels + 4):
        with pytest.raises(DataError, match="cannot be weighted"):
            fitted(beliefs, wrong)
