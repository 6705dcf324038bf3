"""What compression does to the classical rules, and what hostile devices make of it: each hole that was found stays closed."""

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from edgefl.aggregate.contract import Aggregator
from edgefl.aggregate.geometry import cosines
from edgefl.aggregate.robust import make
from edgefl.codec.compress import Memory, compress
from edgefl.codec.scheme import Scheme
from edgefl.codec.sparsify import Sparse
from edgefl.layout import Float32, Index, Layout, Tensor, nested_index
from edgefl.plan import Plan

SIZE = 4000
HONEST, HOSTILE = 16, 4
WATCHED = ("mean", "trimmed-mean", "multi-krum")
LARGEST_CLAIM = float(1 << 40)
"""Examples: the most that an update's head can say."""


def truth(size: int = SIZE) -> Float32:
    """What all honest devices want: few coordinates matter much."""
    return (np.random.default_rng(7).standard_normal(size) ** 3).astype(np.float32)


def honest(device: int, wanted: Float32, noise: float = 0.5) -> Float32:
    """The truth and what is a device's own."""
    return (wanted + noise * np.random.default_rng(device).standard_normal(len(wanted))).astype(np.float32)


def sent(delta: Float32, sparsity: float = 0.1) -> Sparse:
    """What arrives of a delta."""
    scheme = Scheme(sparsity=sparsity, bits=1)
    return compress(delta, Memory.empty(len(delta), scheme), scheme, rng=np.random.default_rng(0)).sent


def watched(name: str, size: int = SIZE, parts: Sequence[slice] = ()) -> Aggregator:
    """An aggregator that looks at devices."""
    plan = Plan(aggregator=name, attackers=0.2, clip=2.0, exclude=0.4)  # type: ignore[arg-type] # names of aggregators
    return make(plan, size, parts)


def scored(
    aggregator: Aggregator, updates: Mapping[str, Sparse], claims: Mapping[str, float]
) -> tuple[Float32, Mapping[str, float]]:
    """Result and scores of these updates; devices without a claim say that they have ten examples."""
    for device, update in updates.items():
        aggregator.add(update, None, claims.get(device, 10.0), key="w", device=device)
    return aggregator.result(), aggregator.scores()


def cosine(a: Float32, b: Float32) -> float:
    """Between two vectors."""
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


@pytest.mark.parametrize("count", [1, HOSTILE])
@pytest.mark.parametrize("name", WATCHED)
def test_a_claim_of_many_examples_buys_nothing(name: str, count: int) -> None:
    """A trillion examples weigh as much as the median device's: result and scores are those without the claim."""
    good = {f"good{i}": sent(honest(i, truth())) for i in range(HONEST)}
    bad = {f"bad{i}": sent(-honest(100 + i, truth())) for i in range(count)}
    modest, modest_scores = scored(watched(name), good | bad, {})
    result, scores = scored(watched(name), good | bad, dict.fromkeys(bad, LARGEST_CLAIM))
    np.testing.assert_array_equal(result, modest)
    assert scores == modest_scores
    assert max(scores[device] for device in bad) < 0.1
    assert min(scores[device] for device in good) > 0.9


def test_of_two_updates_the_claimant_does_not_set_the_measure() -> None:
    """With one honest device and one that claims everything, both weigh the same."""
    updates = {"good": sent(honest(1, truth())), "bad": sent(honest(2, truth()))}
    result, _ = scored(watched("mean"), updates, {"bad": LARGEST_CLAIM})
    equal, _ = scored(watched("mean"), updates, {})
    np.testing.assert_array_equal(result, equal)


@pytest.mark.parametrize(("noise", "sparsity"), [(0.5, 0.1), (4.0, 0.05), (12.0, 0.01)])
@pytest.mark.parametrize("name", WATCHED)
def test_accomplices_who_send_the_same_do_not_vouch_for_each_other(name: str, noise: float, sparsity: float) -> None:
    """However little honest updates have in common, four copies of one hostile update score below all but the oddest of them."""
    good = {f"good{i:02}": sent(honest(i, truth(), noise), sparsity) for i in range(HONEST)}
    copied = sent(-honest(100, truth(), noise), sparsity)
    result, scores = scored(watched(name), good | {f"bad{i}": copied for i in range(HOSTILE)}, {})
    assert max(score for device, score in scores.items() if device.startswith("bad")) < 0.1
    assert float(np.median([score for device, score in scores.items() if device.startswith("good")])) > 0.8
    if name == "multi-krum":
        alone, _ = scored(watched("mean"), good, {})
        assert cosine(result, alone) > 0.95


@pytest.mark.parametrize("mute", [0, 1, 2])
def test_silence_in_a_tensor_shields_nobody(mute: int) -> None:
    """Accomplices who send nothing of the last tensor do not hide those who lie there, and are not blamed for it."""
    parts = (slice(0, 3900), slice(3900, SIZE))
    wanted = truth()
    wanted[3900:] *= 2
    updates = {f"good{i:02}": sent(honest(i, wanted)) for i in range(HONEST)}
    for number in range(HOSTILE):
        delta = honest(100 + number, wanted)
        delta[3900:] *= 0 if number < mute else -1
        updates[f"{'mute' if number < mute else 'liar'}{number}"] = sent(delta)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        _, scores = scored(watched("multi-krum", parts=parts), updates, {})
    assert max(score for device, score in scores.items() if device.startswith("liar")) < 0.1
    assert min(score for device, score in scores.items() if not device.startswith("liar")) > 0.9


def test_a_coordinate_or_two_of_a_small_tensor_condemn_nobody() -> None:
    """Of a bias, devices send a coordinate or two, whose direction is chance: it does not count."""
    parts = (slice(0, SIZE - 12), slice(SIZE - 12, SIZE))
    wanted = truth()
    wanted[-12:] = 4.0
    updates = {f"d{i:02}": sent(honest(i, wanted, 2.0)) for i in range(HONEST)}
    whole, few = updates["d00"], np.array([SIZE - 2, SIZE - 1])
    kept = whole.positions < SIZE - 12
    values = np.concatenate([whole.values[kept], np.full(2, -abs(whole.values[0]), dtype=np.float32)])
    updates["d00"] = Sparse(np.concatenate([whole.positions[kept], few]), values, SIZE)
    _, scores = scored(watched("multi-krum", parts=parts), updates, {})
    assert scores["d00"] > 0.7


PARENT = Layout((Tensor("w", (64, 80)), Tensor("b", (64,))))
QUARTER = Layout((Tensor("w", (16, 20)), Tensor("b", (16,))))
INDEX = nested_index(PARENT, QUARTER)


@pytest.mark.parametrize(("wide", "narrow"), [(18, 2), (12, 8), (4, 16)])
@pytest.mark.parametrize("name", WATCHED)
def test_a_small_board_is_as_good_as_a_large_one(name: str, wide: int, narrow: int) -> None:
    """Honest devices score well whatever their variant's width, be they many or few: nobody is excluded for being small."""
    aggregator = watched(name, PARENT.size, [place for _, place in PARENT.slices()])
    wanted = truth(PARENT.size)
    for number in range(wide):
        aggregator.add(sent(honest(number, wanted, 1.0)), None, 10.0, key="wide", device=f"wide{number}")
    for number in range(narrow):
        delta = honest(500 + number, wanted, 1.0)[INDEX]
        aggregator.add(sent(delta), INDEX, 10.0, key="narrow", device=f"narrow{number}")
    aggregator.result()
    assert min(aggregator.scores().values()) > 0.6


def test_bounds_do_not_shorten_wide_updates_for_being_wide() -> None:
    """Where most devices are narrow, an honest wide update keeps its length: the bound goes by the coordinates it has."""
    wanted = truth(PARENT.size)
    bounded, free = watched("mean", PARENT.size), make(Plan(), PARENT.size)
    for aggregator in (bounded, free):
        aggregator.add(sent(wanted), None, 10.0, key="wide", device="wide")
        for number in range(6):
            aggregator.add(sent(wanted[INDEX]), INDEX, 10.0, key="narrow", device=f"narrow{number}")
    np.testing.assert_allclose(bounded.result(), free.result(), rtol=1e-6)


def test_cosines_are_those_of_the_dense_vectors_on_common_coordinates() -> None:
    """The sparse arithmetic equals the plain one; where nothing is said in common, the cosine is 0."""
    rng = np.random.default_rng(1)
    half: Index = np.arange(0, 50, 2)
    indexes: list[Index | None] = [None, half, None, half, None]
    updates = []
    for index in indexes[:4]:
        places = np.sort(rng.choice(50 if index is None else index, 12, replace=False))
        updates.append(Sparse(places, rng.standard_normal(12).astype(np.float32), 50))
    updates.append(Sparse(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32), 50))
    found = cosines(updates, indexes)
    for i, one in enumerate(updates):
        for j, other in enumerate(updates):
            common = np.ones(50, dtype=bool)
            for index in (indexes[i], indexes[j]):
                if index is not None:
                    common &= np.isin(np.arange(50), index)
            a, b = one.dense()[common].astype(np.float64), other.dense()[common].astype(np.float64)
            size = float(np.linalg.norm(a) * np.linalg.norm(b))
            assert found[i, j] == pytest.approx(float(a @ b) / size if size else 0.0, abs=1e-9)
