"""The server's optimisers: the published formulas, coordinates that nobody covers, and a state that survives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefl.aggregate.server import BETA1, BETA2, TAU, advance, begin, read_state
from edgefl.errors import StoreError
from edgefl.layout import Float32
from edgefl.plan import ServerOptimizer

OPTIMIZERS: tuple[ServerOptimizer, ...] = ("sgd", "momentum", "adam", "yogi")


def deltas(count: int, size: int = 50) -> list[Float32]:
    """Aggregates of some rounds."""
    rng = np.random.default_rng(3)
    return [rng.standard_normal(size).astype(np.float32) * np.float32(0.1) for _ in range(count)]


def by_the_book(optimizer: str, rounds: list[Float32], rate: float) -> Float32:
    """Reddi et al., algorithm 2, in float64 and one coordinate at a time."""
    w = np.zeros(len(rounds[0]))
    m, v = np.zeros_like(w), np.zeros_like(w)
    for d in (r.astype(np.float64) for r in rounds):
        if optimizer == "sgd":
            w += rate * d
            continue
        if optimizer == "momentum":
            m = BETA1 * m + d
            w += rate * m
            continue
        m = BETA1 * m + (1 - BETA1) * d
        v = BETA2 * v + (1 - BETA2) * d**2 if optimizer == "adam" else v - (1 - BETA2) * d**2 * np.sign(v - d**2)
        w += rate * m / (np.sqrt(v) + TAU)
    return w.astype(np.float32)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_steps_are_the_published_ones(optimizer: ServerOptimizer) -> None:
    """Ten rounds give what the paper's formulas give."""
    w, state = np.zeros(50, dtype=np.float32), begin(optimizer, 50)
    for d in deltas(10):
        w, state = advance(w, d, state, 0.5)
    np.testing.assert_allclose(w, by_the_book(optimizer, deltas(10), 0.5), rtol=1e-4, atol=1e-5)


def test_plain_sgd_with_rate_one_is_federated_averaging() -> None:
    """The mean update is added, and nothing is remembered."""
    parent, (d,) = np.ones(50, dtype=np.float32), deltas(1)
    moved, state = advance(parent, d, begin("sgd", 50), 1.0)
    np.testing.assert_array_equal(moved, parent + d)
    assert state.encode() == b""


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_nobody_covers_does_not_move(optimizer: ServerOptimizer) -> None:
    """Momentum of earlier rounds does not push a coordinate on that no device of this round has."""
    first, second = deltas(2)
    w, state = advance(np.zeros(50, dtype=np.float32), first, begin(optimizer, 50), 1.0)
    covered = np.arange(50) < 20
    moved, after = advance(w, np.where(covered, second, np.float32(0.0)), state, 1.0, covered)
    np.testing.assert_array_equal(moved[20:], w[20:])
    assert not np.array_equal(moved[:20], w[:20])
    for new, old in zip(after.vectors, state.vectors, strict=True):
        np.testing.assert_array_equal(new[20:], old[20:])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_server_that_was_killed_goes_on_as_if_not(optimizer: ServerOptimizer) -> None:
    """The state that was written and read gives the same next weights, bit by bit."""
    w, state = np.zeros(50, dtype=np.float32), begin(optimizer, 50)
    for d in deltas(3):
        w, state = advance(w, d, state, 0.1)
    again = read_state(state.encode(), optimizer, 50)
    (d,) = deltas(1)
    np.testing.assert_array_equal(advance(w, d, state, 0.1)[0], advance(w, d, again, 0.1)[0])


@settings(max_examples=50)
@given(st.binary(max_size=500), st.sampled_from(OPTIMIZERS[1:]))
def test_damaged_state_is_refused(data: bytes, optimizer: ServerOptimizer) -> None:
    """Whatever bytes come, the error is a typed one."""
    with pytest.raises(StoreError):
        read_state(data, optimizer, 50)


def test_a_state_of_another_optimiser_or_size_is_refused() -> None:
    """Neither is taken for this one."""
    data = begin("adam", 50).encode()
    for optimizer, size in (("yogi", 50), ("adam", 51), ("momentum", 100), ("sgd", 50)):
        with pytest.raises(StoreError):
            read_state(data, optimizer, size)  # type: ignore[arg-type] # names of optimisers
