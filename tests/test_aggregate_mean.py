import tracemalloc

import numpy as np
import pytest

from edgefl.aggregate.mean import PartialSum, polynomial_staleness
from edgefl.codec.sparsify import Sparse
from edgefl.errors import UpdateError
from edgefl.layout import Layout, Tensor, nested_index

PARENT = Layout((Tensor("w", (8, 5)), Tensor("b", (8,))))
HALF = Layout((Tensor("w", (4, 5)), Tensor("b", (4,))))
INDEX = nested_index(PARENT, HALF)


def sparse(size: int, seed: int, count: int | None = None) -> Sparse:
    """A random sparse vector."""
    rng = np.random.default_rng(seed)
    positions = np.sort(rng.choice(size, count or size // 3, replace=False))
    return Sparse(positions, rng.standard_normal(len(positions)).astype(np.float32), size)


def arrivals() -> list[tuple[Sparse, np.ndarray | None, float, str]]:
    """Thirty updates of two structures with different weights."""
    return [
        (sparse(HALF.size, s), INDEX, 1.0 + s, "half") if s % 3 else (sparse(PARENT.size, s), None, 2.5 + s, "full")
        for s in range(30)
    ]


def folded(updates: list[tuple[Sparse, np.ndarray | None, float, str]]) -> PartialSum:
    """The sum of these updates."""
    total = PartialSum(PARENT.size)
    for update, index, weight, key in updates:
        total.add(update, index, weight, key=key)
    return total


def test_it_equals_the_dense_mean() -> None:
    """The result is the weighted mean of the dense updates over those devices that cover the coordinate."""
    above, below = np.zeros(PARENT.size), np.zeros(PARENT.size)
    for update, index, weight, _ in arrivals():
        where = np.arange(PARENT.size) if index is None else index
        above[where] += weight * update.dense()
        below[where] += weight
    np.testing.assert_allclose(folded(arrivals()).result(), above / below, atol=1e-6)


def test_the_order_of_arrival_does_not_matter() -> None:
    """Any permutation of the updates gives the same mean."""
    updates = arrivals()
    first = folded(updates).result()
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(updates))
        np.testing.assert_allclose(folded([updates[i] for i in order]).result(), first, atol=1e-6)


def test_merging_partial_sums_is_summing_everything() -> None:
    """Workers may each fold a part: merged, they give what one would have given."""
    updates = arrivals()
    left, right = folded(updates[:11]), folded(updates[11:])
    left.merge(right)
    assert left.updates == 30
    np.testing.assert_allclose(left.result(), folded(updates).result(), atol=1e-6)


def test_a_coordinate_that_nobody_covers_stays() -> None:
    """Where no device's variant reaches, the mean is exactly 0."""
    total = PartialSum(PARENT.size)
    assert not total.result().any()
    total.add(Sparse(np.arange(HALF.size), np.ones(HALF.size, dtype=np.float32), HALF.size), INDEX, 3.0, key="half")
    result = total.result()
    assert (result[INDEX] == 1.0).all()
    assert not np.delete(result, INDEX).any()


def test_covered_but_not_sent_counts_as_zero() -> None:
    """A device that covers a coordinate and does not send it takes part in the mean with a zero."""
    total = PartialSum(4)
    total.add(Sparse(np.array([0]), np.array([3.0], dtype=np.float32), 4), None, 1.0, key="full")
    total.add(Sparse(np.array([1]), np.array([6.0], dtype=np.float32), 4), None, 2.0, key="full")
    np.testing.assert_allclose(total.result(), [1.0, 4.0, 0.0, 0.0])


def test_memory_does_not_grow_with_the_number_of_updates() -> None:
    """A hundred updates take no more memory than one."""
    size = 50_000
    total = PartialSum(size)
    total.add(sparse(size, 0, 500), None, 1.0, key="full")
    tracemalloc.start()
    for seed in range(100):
        total.add(sparse(size, seed, 500), None, 1.0, key="full")
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 20_000


def test_sums_of_many_small_updates_keep_their_precision() -> None:
    """Ten thousand equal float32 values average to themselves."""
    total = PartialSum(1)
    one = Sparse(np.array([0]), np.array([0.1], dtype=np.float32), 1)
    for _ in range(10_000):
        total.add(one, None, 1.0, key="full")
    assert total.result()[0] == np.float32(0.1)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_weight_is_refused(weight: float) -> None:
    """A weight that would poison the mean leaves the sum unchanged."""
    total = folded(arrivals())
    before = total.result()
    with pytest.raises(UpdateError):
        total.add(sparse(PARENT.size, 1), None, weight, key="full")
    np.testing.assert_array_equal(total.result(), before)


def test_an_update_of_another_structure_is_refused() -> None:
    """Size, coordinates and the name of the structure must fit together."""
    total = folded(arrivals())
    with pytest.raises(UpdateError):
        total.add(sparse(HALF.size + 1, 1), INDEX, 1.0, key="half")
    with pytest.raises(UpdateError, match="two different structures"):
        total.add(sparse(HALF.size, 1), INDEX[::-1].copy(), 1.0, key="half")
    with pytest.raises(UpdateError, match="no part of the parent"):
        total.add(sparse(HALF.size, 1), INDEX + PARENT.size, 1.0, key="other")
    with pytest.raises(UpdateError):
        total.merge(PartialSum(3))


def test_staleness_is_the_polynomial_of_fedasync() -> None:
    """Fresh counts fully, three rounds late counts half, and the discount grows with lateness."""
    assert polynomial_staleness(0) == 1.0
    assert polynomial_staleness(3) == 0.5
    assert polynomial_staleness(1, exponent=1.0) == 0.5
