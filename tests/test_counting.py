"""What one update counts for, and that updates which pass alone pass together."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefl.aggregate.counting import check_range, weight_of
from edgefl.aggregate.mean import PartialSum
from edgefl.codec.sparsify import Sparse
from edgefl.errors import UpdateError
from edgefl.plan import JumpStart, Plan

LARGEST = 100.0
RACE = Plan(jump_start=JumpStart(devices=2, epochs=3))


def test_examples_count_and_lateness_costs() -> None:
    """Twice the examples are twice the weight; each round late takes some of it away, and the loss is not looked at."""
    plan = Plan()
    weights = [weight_of(plan, 3, samples=100, late=late, loss=loss) for late, loss in ((0, 1.0), (0, 9.0), (1, 1.0), (3, 1.0))]
    assert weights == pytest.approx([100.0, 100.0, 100 / 2**0.5, 50.0])
    assert weight_of(plan, 3, samples=200, late=0, loss=1.0) == 200.0


def test_in_a_race_only_the_loss_counts() -> None:
    """In the jump-start the least loss wins, however many examples; in the second round the examples count again."""
    quick, good = (weight_of(RACE, 1, samples=samples, late=0, loss=loss) for samples, loss in ((1000, 2.0), (1, 0.5)))
    assert good > quick > 0.0
    assert weight_of(RACE, 2, samples=7, late=0, loss=2.0) == 7.0


@pytest.mark.parametrize(
    ("value", "rate", "refused"), [(59.0, 1.0, False), (61.0, 1.0, True), (61.0, 0.5, False), (-200.0, 1.0, True)]
)
def test_what_makes_a_weight_too_large_is_refused(value, rate, refused) -> None:
    """The weight that it would come to counts, with the server's factor, at the parent's coordinate that it is about."""
    parent, update = np.array([0.0, 0.0, 40.0], dtype=np.float32), Sparse(np.array([1]), np.array([value], dtype=np.float32), 2)
    plan, sent = Plan(server_rate=rate), np.array([0, 2])
    if not refused:
        check_range(parent, sent, update, plan, 1, LARGEST)
        return
    with pytest.raises(UpdateError, match=r"too large: training has diverged"):
        check_range(parent, sent, update, plan, 1, LARGEST)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-150, 150, width=32), st.floats(0.5, 1000)), min_size=1, max_size=6),
    st.floats(-90, 90, width=32),
)
def test_what_passes_alone_passes_together(updates, before) -> None:
    """However updates that pass are weighted, their mean leaves the weight in the range."""
    parent, plan, total = np.array([before], dtype=np.float32), Plan(), PartialSum(1)
    for number, (value, weight) in enumerate(updates):
        update = Sparse(np.array([0]), np.array([value], dtype=np.float32), 1)
        try:
            check_range(parent, None, update, plan, 1, LARGEST)
        except UpdateError:
            continue
        total.add(update, None, weight, key=str(number))
    assert abs(float((parent + total.result())[0])) <= LARGEST * (1 + 1e-6)
