"""Aggregators: what they promise whatever comes, and that hostile devices cannot steer them, on compressed updates."""

import tracemalloc
from collections.abc import Callable, Mapping

import numpy as np
import pytest

from edgefl.aggregate.contract import Aggregator
from edgefl.aggregate.judging import relative
from edgefl.aggregate.robust import make
from edgefl.aggregate.standing import after_round, fallen
from edgefl.codec.compress import Memory, compress
from edgefl.codec.scheme import Scheme
from edgefl.codec.sparsify import Sparse
from edgefl.errors import UpdateError
from edgefl.layout import Float32
from edgefl.plan import Plan

SIZE = 4000
HONEST, HOSTILE = 16, 4
NAMES = ("mean", "trimmed-mean", "multi-krum", "root-set")
ROBUST = ("trimmed-mean", "multi-krum", "root-set")
SCHEME = Scheme(sparsity=0.1, bits=1)


def plan(name: str, **fields: object) -> Plan:
    """A plan with this aggregator."""
    return Plan(aggregator=name, **fields)  # type: ignore[arg-type] # the names above


def compressed(delta: Float32) -> Sparse:
    """What arrives of a delta."""
    return compress(delta, Memory.empty(len(delta), SCHEME), SCHEME, rng=np.random.default_rng(0)).sent


def truth() -> Float32:
    """What all honest devices want: few coordinates matter much."""
    return (np.random.default_rng(7).standard_normal(SIZE) ** 3).astype(np.float32)


def honest(device: int, noise: float = 0.5) -> Float32:
    """A device's delta: the truth and what is its own."""
    own = np.random.default_rng(device).standard_normal(SIZE)
    delta: Float32 = (truth() + noise * own).astype(np.float32)
    return delta


def filled(aggregator: Aggregator, updates: Mapping[str, Sparse]) -> Aggregator:
    """The aggregator with these updates."""
    for device, update in updates.items():
        aggregator.add(update, None, 10.0, key="w", device=device)
    return aggregator


def cosine(a: Float32, b: Float32) -> float:
    """Between two vectors."""
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def deviation() -> Float32:
    """Of the honest deltas, coordinate by coordinate, and their mean."""
    deltas = np.stack([honest(i) for i in range(HONEST)])
    return (deltas.mean(0) - 1.5 * deltas.std(0)).astype(np.float32)


ATTACKS: Mapping[str, Callable[[int], Float32]] = {
    "sign-flip": lambda i: -3.0 * honest(i),
    "gaussian": lambda i: 20.0 * np.random.default_rng(1000 + i).standard_normal(SIZE).astype(np.float32),
    "alie": lambda _: deviation(),
    "label-flip": lambda i: (-truth() + honest(i, 2.0) * 0.5).astype(np.float32),
}


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_arrival_does_not_show(name: str) -> None:
    """Two orders of the same updates give the same vector and the same scores."""
    updates = {f"d{i}": compressed(honest(i)) for i in range(8)}
    backwards = dict(reversed(updates.items()))
    one, other = (filled(make(plan(name, clip=2.0), SIZE), given) for given in (updates, backwards))
    np.testing.assert_allclose(one.result(truth()), other.result(truth()), rtol=1e-6, atol=1e-7)
    assert one.scores() == pytest.approx(other.scores())


@pytest.mark.parametrize("name", NAMES)
def test_equal_updates_give_themselves(name: str) -> None:
    """If all devices say the same, that is the result, and nobody stands out."""
    update = compressed(truth())
    aggregator = filled(make(plan(name, clip=1.0), SIZE), {f"d{i}": update for i in range(9)})
    np.testing.assert_allclose(aggregator.result(update.dense()), update.dense(), rtol=1e-5)
    assert all(score == pytest.approx(1.0) for score in aggregator.scores().values())


@pytest.mark.parametrize("name", NAMES)
def test_a_coordinate_is_divided_by_those_who_cover_it(name: str) -> None:
    """Devices with half of the model leave the other half to those that have it."""
    index = np.arange(0, SIZE, 2)
    aggregator = make(plan(name), SIZE)
    for number in range(6):
        aggregator.add(compressed(truth()), None, 1.0, key="whole", device=f"a{number}")
        aggregator.add(compressed(truth()[index]), index, 1.0, key="half", device=f"b{number}")
    result = aggregator.result(truth())
    whole = compressed(truth()).dense()
    odd = np.flatnonzero(whole[1::2]) * 2 + 1
    ratio = result[odd] / whole[odd]
    assert np.ptp(ratio) < 1e-5
    assert ratio[0] > 0.9 if name != "root-set" else ratio[0] > 0.0


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("name", ROBUST)
def test_a_fifth_of_hostile_devices_does_not_steer(name: str, attack: str) -> None:
    """The aggregate of compressed updates points nearly where the honest devices alone would go."""
    good = {f"good{i}": compressed(honest(i)) for i in range(HONEST)}
    bad = {f"bad{i}": compressed(ATTACKS[attack](i)) for i in range(HOSTILE)}
    wanted = filled(make(Plan(), SIZE), good).result()
    result = filled(make(plan(name, attackers=0.2, clip=1.5), SIZE), good | bad).result(compressed(honest(99)).dense())
    assert cosine(result, wanted) > 0.9


@pytest.mark.parametrize("attack", ["sign-flip", "gaussian", "label-flip"])
@pytest.mark.parametrize("name", ["trimmed-mean", "multi-krum", "root-set"])
def test_hostile_devices_are_named_by_their_scores(name: str, attack: str) -> None:
    """Every attacker scores below every honest device, and falls under a threshold of 0.3 within a few rounds."""
    good = {f"good{i}": compressed(honest(i)) for i in range(HONEST)}
    bad = {f"bad{i}": compressed(ATTACKS[attack](i)) for i in range(HOSTILE)}
    aggregator = filled(make(plan(name, clip=1.5), SIZE), good | bad)
    aggregator.result(compressed(honest(99)).dense())
    scores = aggregator.scores()
    assert max(scores[device] for device in bad) < min(scores[device] for device in good)
    standings: dict[str, float] = {}
    for _ in range(5):
        standings = after_round(standings, scores)
    assert set(fallen(standings, (), 0.3, attackers=1.0, devices=len(standings))) == set(bad)


def test_a_long_update_is_cut_to_its_bound() -> None:
    """With norm bounding, an update a hundred times as long moves no more than one of twice the median length."""
    updates = {f"d{i}": compressed(honest(i)) for i in range(9)}
    huge = compressed(honest(50))
    long = Sparse(huge.positions, huge.values * 100.0, SIZE)
    result = filled(make(Plan(clip=2.0), SIZE), updates | {"x": long}).result()
    alone = filled(make(Plan(), SIZE), updates).result()
    middle = float(np.median([np.linalg.norm(u.values) for u in updates.values()]))
    assert np.linalg.norm(result * 10.0 - alone * 9.0) <= 2.05 * middle


def test_the_root_set_needs_a_root() -> None:
    """Without an update of the server's own the error says what to do."""
    aggregator = filled(make(plan("root-set"), SIZE), {"d": compressed(truth())})
    with pytest.raises(UpdateError, match="root"):
        aggregator.result()


@pytest.mark.parametrize("name", NAMES)
def test_an_update_that_does_not_fit_changes_nothing(name: str) -> None:
    """Another size, or another structure under the same name, is refused."""
    aggregator = filled(make(plan(name), SIZE), {"d": compressed(truth())})
    before = aggregator.result(truth())
    with pytest.raises(UpdateError):
        aggregator.add(compressed(truth()[:100]), None, 1.0, key="w", device="e")
    assert aggregator.updates == 1
    np.testing.assert_array_equal(aggregator.result(truth()), before)


def test_an_excluded_device_needs_a_threshold_and_a_habit() -> None:
    """One bad round is forgiven, bad rounds in a row are not, and without a threshold nobody is excluded."""
    once = after_round({}, {"d": 0.0})
    assert once["d"] == pytest.approx(0.7)
    twice = after_round(once, {"d": 0.0})
    assert fallen(twice, (), 0.5, attackers=0.2, devices=1) == ["d"]
    assert fallen({"d": 0.0}, (), 0.0, attackers=0.2, devices=1) == []
    assert after_round(twice, {"d": 1.0})["d"] > twice["d"]


def test_scores_exclude_no_more_than_the_plan_takes_to_be_hostile() -> None:
    """Of ten bad standings the worst two of ten devices are excluded, once: framing the others does not get rid of them."""
    standings = {f"d{number}": number / 100 for number in range(10)}
    assert fallen(standings, (), 0.4, attackers=0.2, devices=10) == ["d0", "d1"]
    assert fallen(standings, ("d0", "d1"), 0.4, attackers=0.2, devices=10) == []
    assert fallen(standings, ("d0",), 0.4, attackers=0.2, devices=10) == ["d1"]


def test_a_perfectly_agreeing_minority_makes_nobody_else_suspicious() -> None:
    """Ten of fifty agree to the last bit, the others spread widely around a low value: none of them scores below a half."""
    rng = np.random.default_rng(0)
    values = np.concatenate([np.full(10, 0.9), np.abs(rng.normal(0.1, 0.04, 40))])
    assert relative(values).min() > 0.5
    assert relative(np.concatenate([values, [-0.3]]))[-1] == 0.0


@pytest.mark.parametrize("name", ["mean"])
def test_memory_of_the_mean_does_not_grow_with_the_updates(name: str) -> None:
    """A hundred updates take no more memory than ten."""
    update = compressed(truth())

    def peak(count: int) -> int:
        tracemalloc.start()
        aggregator = make(plan(name), SIZE)
        for number in range(count):
            aggregator.add(update, None, 1.0, key="w", device=f"d{number}")
        aggregator.result()
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(100) < peak(10) + 20_000
