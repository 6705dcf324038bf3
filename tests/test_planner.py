"""Laws of the planner: what it takes fits, more room is never worse, and nothing it shows is beaten by something else."""

import itertools
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefl.compress.groups import Group, shrunk
from edgefl.compress.planner import RESOURCES, Budget, Cost, plan
from edgefl.compress.sensitivity import EXHAUSTIVE, Baseline, Sensitivity, searched, thinned
from edgefl.errors import ModelError
from edgefl.layout import Layout, Tensor


@dataclass(frozen=True)
class Item:
    """An offer."""

    name: str
    cost: Cost
    accuracy: float | None


COSTS = st.builds(Cost, st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))
BUDGETS = st.builds(Budget, st.integers(0, 9), st.none() | st.integers(0, 9), st.none() | st.integers(0, 9))
ACCURACIES = st.integers(0, 6).map(lambda n: n / 6)


def items(pairs: list[tuple[Cost, float]]) -> tuple[Item, ...]:
    """Offers with names."""
    return tuple(Item(str(n), cost, accuracy) for n, (cost, accuracy) in enumerate(pairs))


OFFERS = st.lists(st.tuples(COSTS, ACCURACIES), min_size=1, max_size=12).map(items)


@settings(max_examples=200, deadline=None)
@given(OFFERS, BUDGETS)
def test_the_winner_is_what_trying_everything_finds(offers: tuple[Item, ...], budget: Budget) -> None:
    """The most accurate offer that fits, of equal ones the first; it stands on the frontier; none if nothing fits."""
    planned = plan(offers, budget)
    fitting = [o for o in offers if all(b is None or o.cost.of(r) <= b for r in RESOURCES for b in [budget.limit(r)])]
    assert planned.winner == (max(fitting, key=lambda o: o.accuracy or 0.0) if fitting else None)
    assert planned.winner is None or planned.winner in planned.frontier
    assert planned == plan(offers, budget)


@settings(max_examples=100, deadline=None)
@given(OFFERS, BUDGETS, st.integers(0, 5))
def test_more_room_never_predicts_worse(offers: tuple[Item, ...], budget: Budget, more: int) -> None:
    """Every bound raised: the predicted accuracy is at least what it was."""

    def raised(bound: float | None) -> float | None:
        return None if bound is None else bound + more

    before, after = plan(offers, budget), plan(offers, Budget(budget.storage + more, raised(budget.memory), raised(budget.step)))
    if before.winner is not None:
        assert after.winner is not None
        assert (after.winner.accuracy or 0.0) >= (before.winner.accuracy or 0.0)


@settings(max_examples=100, deadline=None)
@given(OFFERS)
def test_nothing_on_the_frontier_is_beaten(offers: tuple[Item, ...]) -> None:
    """No offer is more accurate than one on the frontier at no more cost, and what is off the frontier is beaten by one on it."""
    found = plan(offers, Budget(9, -1.0, -1.0)).frontier  # every resource matters

    def beats(one: Item, other: Item) -> bool:
        return all(one.cost.of(r) <= other.cost.of(r) for r in RESOURCES) and (one.accuracy or 0.0) >= (other.accuracy or 0.0)

    for one in found:
        assert not any(beats(other, one) and (other.accuracy or 0.0) > (one.accuracy or 0.0) for other in offers)
    assert all(one in found or any(beats(other, one) for other in found) for one in offers)


def test_the_reason_names_what_binds_and_by_how_much() -> None:
    """The nearest better offer, and what it lacks; where the best fits nothing binds."""
    offers = (Item("a", Cost(100, 10), 0.9), Item("b", Cost(60, 30), 0.8), Item("c", Cost(10, 1), 0.5))
    planned = plan(offers, Budget(50, 40))
    assert planned.winner == offers[2]
    assert planned.nearest == offers[1]
    assert planned.reason == "storage binds: b (80.00 %) needs 10 bytes more storage"
    assert plan(offers, Budget(100, 40)).reason == "the best there is, and it fits"
    assert "memory binds" in plan(offers, Budget(100, 5)).reason


def test_without_accuracies_the_order_decides_and_is_said_to() -> None:
    """One unknown accuracy is enough: the first that fits is taken."""
    offers = (Item("wide", Cost(9), None), Item("narrow", Cost(3), 0.99), Item("slim", Cost(2), None))
    planned = plan(offers, Budget(5))
    assert planned.winner == offers[1]
    assert not planned.informed
    assert "without measured accuracies" in planned.reason


GROUPS = (
    Group("a", 8, 1, (("a.weight", 0, 1), ("b.weight", 1, 1))),
    Group("b", 16, 2, (("b.weight", 0, 1), ("c.weight", 1, 4))),
)
PARENT = Layout((Tensor("a.weight", (8, 3)), Tensor("b.weight", (16, 8)), Tensor("c.weight", (5, 64))))


def test_channels_go_from_every_axis_that_has_them() -> None:
    """A group's rows vanish wherever they are read, whole places in each part, never the last one."""
    child = shrunk(PARENT, GROUPS, {"a": 0.5, "b": 0.01})
    assert [t.shape for t in child.tensors] == [(4, 3), (2, 4), (5, 8)]
    assert GROUPS[1].chosen((5, 0, 1, 2, 3, 4, 6, 7), 0.25) == (0, 5, 8, 13)
    assert GROUPS[0].seen(PARENT, shrunk(PARENT, GROUPS, {"a": 0.5}), 4) == GROUPS[0]
    with pytest.raises(ModelError, match="different sizes"):
        GROUPS[0].seen(PARENT, shrunk(PARENT, GROUPS, {"a": 0.5}), 3)


LEVELS = (0.75, 0.5, 0.25)
DROPS = st.lists(st.integers(0, 20), min_size=3, max_size=3).map(
    lambda d: dict(zip(LEVELS, (x / 100 for x in sorted(d)), strict=True))
)


@settings(max_examples=60, deadline=None)
@given(st.tuples(DROPS, DROPS))
def test_the_search_equals_trying_everything(drops: tuple[dict[float, float], dict[float, float]]) -> None:
    """In a small space, for every size: no combination as small as that loses less than the best of the search."""
    sensitivity = Sensitivity({"a": drops[0], "b": drops[1]})

    def size(shares: dict[str, float]) -> int:
        return shrunk(PARENT, GROUPS, shares).size

    found = searched(sensitivity, size)  # type: ignore[arg-type]  # the values are floats either way
    everything = [{"a": a, "b": b} for a, b in itertools.product((1.0, *LEVELS), repeat=2)]
    for bound in {size(cut) for cut in everything}:
        best = min(sensitivity.drop(cut) for cut in everything if size(cut) <= bound)
        assert min(sensitivity.drop(cut) for cut in found if size(cut) <= bound) == best


def test_a_large_space_is_walked_cheapest_first() -> None:
    """Twelve groups: the chain goes from the whole model to the least, and the groups that cost nothing go first."""
    names = [f"g{n:02}" for n in range(12)]
    assert 4 ** len(names) > EXHAUSTIVE
    size = lambda shares: sum(shares.values())  # noqa: E731  short
    sensitivity = Sensitivity({name: {level: n * (1 - level) for level in LEVELS} for n, name in enumerate(names)})
    found = searched(sensitivity, size)
    assert found[0] == {name: 0.25 if name == "g00" else 1.0 for name in names}
    assert found[-1] == dict.fromkeys(names, 0.25)
    few = thinned(found, size, 5)
    assert len(few) == 5
    assert (few[0], few[-1]) == (found[0], found[-1])


def test_drops_between_measurements_lie_on_a_line() -> None:
    """Halfway between two measured shares half of the difference; nothing at the whole, everything at nothing."""
    fine = Sensitivity({"a": {0.5: 0.2, 0.25: 0.6}}).refined((0.75, 0.5, 0.375, 0.125), 0.9).drops["a"]
    assert fine == pytest.approx({0.75: 0.1, 0.5: 0.2, 0.375: 0.4, 0.125: 0.75})


def test_noise_is_no_loss_and_chance_no_knowledge() -> None:
    """A drop within a standard error costs nothing; a model that guesses tells nothing."""
    baseline = Baseline(0.9, 0.1, 100)
    assert baseline.drop(0.89) == 0.0
    assert baseline.drop(0.8) == pytest.approx(0.1)
    assert baseline.predicted([0.5, 0.6]) == 0.0
    assert baseline.tells
    assert not Baseline(0.2, 0.1, 10**6).tells
    assert not Baseline(1.0, 1.0, 100).tells
