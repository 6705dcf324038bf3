"""Who takes part: the lot's laws, the loss's bias, and the fairness figures."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefl.participation import LEAST, MOST, chance, fairness, lot, takes_part

DEVICES = [f"cam-{i:04}" for i in range(2000)]
LOSS = st.floats(1e-6, 1e6)


def test_the_lot_is_what_it_was() -> None:
    """The lot of a device is part of the protocol: these never change."""
    assert [round(lot("m", 1, number, "cam-01"), 6) for number in (1, 2, 3)] == [0.621157, 0.844784, 0.945214]


@pytest.mark.parametrize("fraction", [0.05, 0.3, 1.0])
def test_the_fraction_of_the_fleet_takes_part(fraction: float) -> None:
    """The number of participants lies within four standard deviations of the binomial law."""
    count = sum(takes_part("m", 1, 7, device, fraction) for device in DEVICES)
    assert abs(count - 2000 * fraction) <= 4 * math.sqrt(2000 * fraction * (1 - fraction))


def test_rounds_versions_and_models_draw_anew() -> None:
    """Participation in one round says nothing about another."""
    places = [("m", 1, 1), ("m", 1, 2), ("m", 2, 1), ("n", 1, 1)]
    drawn = [np.array([takes_part(*place, device, 0.5) for device in DEVICES]) for place in places]
    for i, one in enumerate(drawn):
        for other in drawn[:i]:
            assert abs(float(np.mean(one == other)) - 0.5) < 0.06


@given(st.floats(1e-3, 1.0), LOSS, LOSS)
def test_the_chance_is_bounded_and_rises_with_the_loss(fraction: float, own: float, mean: float) -> None:
    """A chance lies in (0, 1] and within the factor's bounds; a larger loss never has a smaller one."""
    likely = chance(fraction, own_loss=own, mean_loss=mean)
    assert min(1.0, LEAST * fraction) <= likely <= min(1.0, MOST * fraction)
    assert chance(fraction, own_loss=2 * own, mean_loss=mean) >= likely


@pytest.mark.parametrize(("own", "mean"), [(0.0, 1.0), (1.0, 0.0), (math.nan, 1.0), (1.0, math.inf), (-1.0, 1.0)])
def test_what_is_not_known_does_not_count(own: float, mean: float) -> None:
    """Without both losses everybody draws with the plain fraction."""
    assert chance(0.3, own_loss=own, mean_loss=mean) == 0.3


def test_biased_sampling_keeps_the_number_and_prefers_the_large_losses() -> None:
    """The expected number of participants stays; devices with three times the loss take part about three times as often."""
    losses = {device: 1.5 if i % 2 else 0.5 for i, device in enumerate(DEVICES)}
    taken = [device for device in DEVICES if takes_part("m", 1, 1, device, chance(0.2, own_loss=losses[device], mean_loss=1.0))]
    assert abs(len(taken) - 400) < 80
    high = sum(losses[device] > 1.0 for device in taken)
    assert 2.2 < high / (len(taken) - high) < 4.2


def test_fairness_of_known_counts() -> None:
    """Even work is 1, one worker among n is 1/n, and those who never came count."""
    assert fairness([3, 3, 3]).jain == 1.0
    assert fairness([0, 0, 8, 0]).jain == 0.25
    mixed = fairness([1, 3])
    assert (mixed.devices, mixed.least, mixed.most, mixed.jain, mixed.largest_share) == (2, 1, 3, 16 / 20, 0.75)
    assert (fairness([]).jain, fairness([0, 0]).largest_share) == (1.0, 0.0)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=50))
def test_jains_index_has_its_bounds(counts: list[int]) -> None:
    """The index lies in [1/n, 1] and does not change with the scale."""
    found = fairness(counts)
    assert 1 / len(counts) - 1e-12 <= found.jain <= 1 + 1e-12
    assert math.isclose(fairness([7 * count for count in counts]).jain, found.jain)
