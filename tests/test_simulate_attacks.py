"""Hostile devices do what their papers say."""

import numpy as np
import pytest

from edgefl.simulate.attacks import Conspiracy, hidden, poisoned, twisted
from edgefl.simulate.experiment import Attack

DELTA = np.random.default_rng(0).standard_normal(1000).astype(np.float32)


def test_sign_flip_points_the_other_way() -> None:
    """The update is the honest one times minus the strength."""
    np.testing.assert_array_equal(twisted(DELTA, Attack(kind="sign-flip", strength=2.0), np.random.default_rng(0)), -2 * DELTA)


def test_noise_is_as_long_as_it_is_asked_to_be() -> None:
    """Gaussian noise has the honest update's length times the strength, and nothing of its direction."""
    noise = twisted(DELTA, Attack(kind="gaussian", strength=3.0), np.random.default_rng(0))
    assert np.linalg.norm(noise) == pytest.approx(3 * np.linalg.norm(DELTA), rel=1e-5)
    assert abs(noise @ DELTA) < 0.1 * np.linalg.norm(noise) * np.linalg.norm(DELTA)


def test_false_labels_mirror_the_true_ones() -> None:
    """Label-flip trains 9 for 0; other attacks and honest devices see the true labels."""
    labels = np.array([0, 3, 9])
    assert poisoned(labels, 10, Attack(kind="label-flip")).tolist() == [9, 6, 0]
    assert poisoned(labels, 10, Attack(kind="sign-flip")) is labels
    assert poisoned(labels, 10, None) is labels


def test_conspirators_hide_within_the_deviation() -> None:
    """All send mean minus z deviations of their own honest updates, whatever the order in which they were added."""
    deltas = np.random.default_rng(1).standard_normal((4, 50)).astype(np.float32)
    plot = Conspiracy(50)
    for delta in deltas:
        plot.add(delta)
    np.testing.assert_allclose(plot.update(20, 1.5), deltas.mean(0) - 1.5 * deltas.std(0), atol=1e-5)


def test_the_hidden_deviation_is_the_papers() -> None:
    """For 50 workers of whom 24 are corrupted, z is 1.43 less the paper's continuity; more honest devices leave less room."""
    # Section 3.1: s = floor(50 / 2 + 1) - 24 = 2 supporters are needed of 26 honest ones: z = inverse of (26 - 2) / 26.
    assert hidden(50, 24) == pytest.approx(1.4260768722848)
    assert hidden(20, 4) < hidden(20, 8)
    assert hidden(10, 0) == 0.0
