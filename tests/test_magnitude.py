"""Pruning during federation, as mathematics: which weights go, how many, when; and that they stay gone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefl.codec.marks import gone, marked, prunable
from edgefl.compress.magnitude import Moment, after_round, is_due, next_share, pruned, share_gone
from edgefl.layout import Layout, Tensor, nested_index
from edgefl.plan import FleetPruning

LAYOUT = Layout((Tensor("a", (20, 30)), Tensor("bias", (20,)), Tensor("norm", (20,), personal=True), Tensor("b", (10, 20))))


def drawn(seed=0):
    """A vector of this layout."""
    return np.random.default_rng(seed).standard_normal(LAYOUT.size).astype(np.float32)


@pytest.mark.parametrize("scope", ["layer", "global", "lamp"])
def test_the_smallest_go_and_the_others_stay_as_they_are(scope):
    """Without rewinding: what is left is what training has made of it; within a tensor nothing larger goes before a smaller."""
    flat = drawn()
    thin = pruned(flat, LAYOUT, FleetPruning(target=0.8, share=0.5, first=1, scope=scope))
    removed = gone(thin, LAYOUT)
    np.testing.assert_array_equal(thin[~removed], flat[~removed])
    assert np.count_nonzero(removed) == pytest.approx(0.5 * np.count_nonzero(prunable(LAYOUT)), abs=2)
    for _, place in LAYOUT.slices():
        if removed[place].any():
            assert np.abs(flat[place])[removed[place]].max() <= np.abs(flat[place])[~removed[place]].min()


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 1 << 30), st.sampled_from(["layer", "global", "lamp"]), st.floats(0.15, 1.0), st.floats(0.1, 0.95))
def test_what_is_gone_stays_gone_while_everything_else_moves(seed, scope, share, target):
    """Over many rounds of any training the removed only grow, never above the target, and end there."""
    rng = np.random.default_rng(seed)
    rules = FleetPruning(target=target, share=share, first=2, every=2, scope=scope)
    flat, last = drawn(seed), 60
    before = gone(flat, LAYOUT)
    for number in range(1, last + 1):
        learnt = flat + rng.standard_normal(LAYOUT.size).astype(np.float32)
        flat = after_round(flat, learnt, LAYOUT, rules, Moment(number, last))
        now = gone(flat, LAYOUT)
        assert (now >= before).all()
        assert not (number < 2 and now.any()), "pre-training"
        before = now
    assert share_gone(flat, LAYOUT) <= target
    assert share_gone(flat, LAYOUT) > target - 0.1, "30 prunings of 15 % or more reach it"


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    scope=st.sampled_from(["layer", "global", "lamp"]),
    before=st.floats(0.0, 0.95),
    zeros=st.floats(0.0, 1.0),
    target=st.floats(0.05, 0.95),
)
def test_what_is_gone_is_part_of_the_target(seed, scope, before, zeros, target):
    """However many weights are gone or zero, and wherever: afterwards the target is gone, or what was if that is more."""
    rng = np.random.default_rng(seed)
    flat = np.where(rng.random(LAYOUT.size) < zeros, np.float32(0.0), drawn(seed))
    flat = marked(flat, (rng.random(LAYOUT.size) < before) & prunable(LAYOUT))
    thin = pruned(flat, LAYOUT, FleetPruning(target=target, share=1.0, first=1, scope=scope))
    was, now = gone(flat, LAYOUT), gone(thin, LAYOUT)
    assert (now >= was).all()
    parts = [place for _, place in LAYOUT.slices() if prunable(LAYOUT)[place].any()] if scope == "layer" else [prunable(LAYOUT)]
    wanted = max(target, share_gone(flat, LAYOUT))
    for part in parts:
        count = len(now[part])
        assert np.count_nonzero(now[part]) == pytest.approx(max(wanted * count, np.count_nonzero(was[part])), abs=1)


def test_each_pruning_takes_its_share_of_what_is_left():
    """30 %, then 30 % of 70 %, and never more than the target."""
    rules = FleetPruning(target=0.6, share=0.3)
    assert next_share(0.0, rules) == pytest.approx(0.3)
    assert next_share(0.3, rules) == pytest.approx(0.51)
    assert next_share(0.51, rules) == pytest.approx(0.6)
    assert next_share(0.7, rules) == 0.7


def test_when_is_pruned():
    """After pre-training, every few rounds, not after the last one, and not while the devices' loss is too high."""
    rules = FleetPruning(first=4, every=3, below=0.5)
    due = [number for number in range(1, 14) if is_due(rules, Moment(number, 13, 0.4))]
    assert due == [4, 7, 10]
    assert not is_due(rules, Moment(4, 13, 0.6))


def test_without_rules_nothing_goes_and_nothing_comes_back():
    """Pruning can be switched off; a model that is pruned already stays it."""
    flat = drawn()
    np.testing.assert_array_equal(after_round(flat, flat + 1, LAYOUT, None, Moment(5, 9)), flat + 1)
    thin = pruned(flat, LAYOUT, FleetPruning(target=0.5, share=1.0))
    later = after_round(thin, thin + 1, LAYOUT, None, Moment(5, 9))
    np.testing.assert_array_equal(gone(later, LAYOUT), gone(thin, LAYOUT))


def test_the_parents_mask_outlasts_the_rounds_of_every_width():
    """What the parent has lost is zero in a narrow view; trained where that is too narrow to be pruned, it is lost again."""
    narrow = Layout((Tensor("a", (10, 15)), Tensor("bias", (10,)), Tensor("norm", (10,), personal=True), Tensor("b", (5, 6))))
    index = nested_index(LAYOUT, narrow)
    thin = pruned(drawn(), LAYOUT, FleetPruning(target=0.7, share=1.0))
    lost = gone(thin, LAYOUT)[index]
    assert (lost & ~prunable(narrow)).any(), "six values per channel of b are too few, twenty in the parent were not"
    assert not thin[index][lost].any()
    np.testing.assert_array_equal(gone(thin[index], narrow), lost & prunable(narrow))
    learnt = thin.copy()
    learnt[index] += np.where(gone(thin[index], narrow), np.float32(0.0), np.float32(1.0))
    after = after_round(thin, learnt, LAYOUT, None, Moment(5, 9))
    np.testing.assert_array_equal(gone(after, LAYOUT), gone(thin, LAYOUT))
    assert (after[index][~lost] == thin[index][~lost] + 1).all()
