import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefl.codec.compress import Memory, compress
from edgefl.codec.history import History
from edgefl.codec.plain import write_plain
from edgefl.codec.scheme import Scheme
from edgefl.codec.selection import sampled_top_k
from edgefl.codec.sparsify import count_sent, top_k
from edgefl.codec.update import decode, max_length, needs_history
from edgefl.codec.values import quantise
from edgefl.errors import UpdateError

SHAPES = ((60, 50), (60,), (10, 60), (10,))
SIZE = 3670
PARTS = (slice(0, 3000), slice(3000, 3060), slice(3060, 3660), slice(3660, 3670))
SCHEMES = [
    Scheme(0.01, 1),
    Scheme(0.1, 4, by_layer=True),
    Scheme(0.3, 2, sampled=True),
    Scheme(0.05, 8, price=1.0),
    Scheme(0.05, 1, correction=0.9),
    Scheme(1.0, 3),
    Scheme(1.0, 2, rotated=True),
]


def rng(seed: int = 0) -> np.random.Generator:
    """A seeded generator."""
    return np.random.default_rng(seed)


def outer(generator: np.random.Generator) -> np.ndarray:
    """A vector whose tensors look like gradients: busy rows, busy columns, and noise."""
    parts = [
        np.outer(generator.standard_normal(s[0]) ** 3, np.abs(generator.standard_normal(s[1] if len(s) > 1 else 1)) ** 3).reshape(
            -1
        )
        for s in SHAPES
    ]
    return (np.concatenate(parts) * generator.standard_normal(SIZE)).astype(np.float32)


def history(seed: int = 0, *, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> tuple[History, np.ndarray]:
    """A model's past, and a delta that goes on like it."""
    generator = rng(seed)
    scale = np.abs(outer(generator))
    start, noise = generator.standard_normal(SIZE), generator.standard_normal((3, SIZE))
    before = start + scale * noise[0] * (generator.random(SIZE) < 0.3)
    now = before + scale * noise[1] * (generator.random(SIZE) < 0.3)
    vectors = (x.astype(np.float32) for x in (start, before, now))
    return History(*vectors, shapes), (scale * noise[2]).astype(np.float32)


@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_sent_and_kept_add_up_and_the_server_reads_what_was_sent(scheme: Scheme, context: bool) -> None:
    """Sent + residual = residual before + velocity, and decode gives `sent` to the last bit, for every scheme."""
    known, delta = history()
    memory = Memory.empty(SIZE, scheme)
    velocity = np.zeros(SIZE)
    for number in range(4):
        given_delta, before = delta.copy(), memory.residual.copy()
        done = compress(delta, memory, scheme, parts=PARTS, history=known if context else None, rng=rng(number))
        velocity = scheme.correction * velocity + delta
        np.testing.assert_allclose(done.sent.dense() + done.memory.residual, before + velocity, rtol=1e-5, atol=1e-4)
        np.testing.assert_array_equal(delta, given_delta)
        np.testing.assert_array_equal(memory.residual, before)
        read = decode(done.data, SIZE, known)
        np.testing.assert_array_equal(read.positions, done.sent.positions)
        np.testing.assert_array_equal(read.values, done.sent.values)
        assert len(done.data) <= max_length(SIZE)
        velocity[done.sent.positions] = 0.0
        memory = done.memory
        if scheme.correction:
            np.testing.assert_allclose(memory.velocity, velocity, rtol=1e-5, atol=1e-4)


@settings(max_examples=120, deadline=None)
@given(
    sparsity=st.floats(0.001, 1.0),
    bits=st.integers(1, 8),
    flags=st.tuples(*[st.booleans()] * 4),
    sizes=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 9)), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
    still=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_any_small_model_survives(
    sparsity: float, bits: int, flags: tuple[bool, ...], sizes: list[tuple[int, int]], seed: int, still: float
) -> None:
    """Any scheme, any shapes, any history, also one that never moved: read exactly, in bounds, never longer than plain."""
    by_layer, sampled, shaped, moved = flags
    ends = np.cumsum([0, *(a * b for a, b in sizes)])
    size = int(ends[-1])
    generator = rng(seed)
    start, step, delta = (generator.standard_normal(size).astype(np.float32) for _ in range(3))
    now = start + step * (generator.random(size) >= still)
    known = History(start, now if moved else start, now, tuple(sizes) if shaped else ())
    scheme = Scheme(sparsity, bits, by_layer=by_layer, sampled=sampled, price=float(seed % 3))
    parts = [slice(int(a), int(b)) for a, b in pairwise(ends)]
    done = compress(delta, Memory.empty(size, scheme), scheme, parts=parts, history=known, rng=generator)
    read = decode(done.data, size, known)
    np.testing.assert_array_equal(read.dense(), done.sent.dense())
    assert len(done.data) <= max_length(size)
    values = done.sent.values
    assert len(done.data) <= len(write_plain(done.sent.positions, quantise(values, bits, generator), size))


def test_context_makes_an_update_shorter() -> None:
    """Where the next update resembles the past ones, its positions cost at least a fifth less; shapes help further."""
    scheme = Scheme(0.05, 1)
    lengths = []
    for shapes in ((), SHAPES):
        known, delta = history(shapes=shapes)
        done = compress(delta, Memory.empty(SIZE, scheme), scheme, history=known, rng=rng())
        assert needs_history(done.data)
        lengths.append(len(done.data))
    plain = compress(delta, Memory.empty(SIZE, scheme), scheme, rng=rng())
    assert not needs_history(plain.data)
    assert lengths[1] < lengths[0] < len(plain.data)
    assert lengths[1] < 0.8 * len(plain.data)


def test_rows_and_columns_help_where_there_is_no_past() -> None:
    """In the first round nothing has moved, and still an update whose rows and columns are unequally busy becomes shorter."""
    delta = outer(rng(1)) * np.ones(SIZE, dtype=np.float32)
    start = rng(2).standard_normal(SIZE).astype(np.float32)
    scheme = Scheme(0.1, 1)
    done = compress(delta, Memory.empty(SIZE, scheme), scheme, history=History(start, start, start, SHAPES), rng=rng())
    plain = compress(delta, Memory.empty(SIZE, scheme), scheme, rng=rng())
    np.testing.assert_array_equal(done.sent.positions, plain.sent.positions)
    assert len(done.data) < 0.9 * len(plain.data)


def test_a_history_that_says_nothing_costs_nothing() -> None:
    """If context does not pay, the plain form is sent."""
    start = rng(2).standard_normal(SIZE).astype(np.float32)
    delta = rng(3).standard_normal(SIZE).astype(np.float32)
    scheme = Scheme(0.05, 1)
    done = compress(delta, Memory.empty(SIZE, scheme), scheme, history=History(start, start, start), rng=rng())
    assert done.data == compress(delta, Memory.empty(SIZE, scheme), scheme, rng=rng()).data


@pytest.mark.parametrize("which", ["start", "before", "now", "shapes", "none", "size"])
def test_another_history_is_noticed(which: str) -> None:
    """An update in context is an UpdateError with any history but the encoder's, even where it differs in a few places."""
    known, delta = history()
    scheme = Scheme(0.05, 1)
    done = compress(delta, Memory.empty(SIZE, scheme), scheme, history=known, rng=rng())
    wrong: History | None
    if which == "none":
        wrong = None
    elif which == "size":
        wrong = History(*(x[:-1] for x in (known.start, known.before, known.now)))
    elif which == "shapes":
        wrong = dataclasses.replace(known, shapes=())
    else:
        vector = getattr(known, which).copy()
        vector[::50] += np.float32(1.0)
        wrong = dataclasses.replace(known, **{which: vector})
    with pytest.raises(UpdateError):
        decode(done.data, SIZE, wrong)


def test_an_equal_history_in_other_arrays_reads_as_well() -> None:
    """What counts are the bits, not the objects; a plain update does not look at the history."""
    known, delta = history()
    copy = History(known.start.copy(), known.before.copy(), known.now.copy(), SHAPES)
    for context in (known, None):
        done = compress(delta, Memory.empty(SIZE, Scheme(0.05)), Scheme(0.05), history=context, rng=rng())
        np.testing.assert_array_equal(decode(done.data, SIZE, copy).values, done.sent.values)


def test_by_layer_sends_the_fraction_of_every_tensor() -> None:
    """Each tensor sends its own largest coordinates, at least one."""
    _, delta = history()
    done = compress(delta, Memory.empty(SIZE, SCHEMES[1]), SCHEMES[1], parts=PARTS, rng=rng())
    for place in PARTS:
        inside = done.sent.positions[(done.sent.positions >= place.start) & (done.sent.positions < place.stop)]
        expected = place.start + top_k(delta[place], count_sent(place.stop - place.start, 0.1))
        np.testing.assert_array_equal(inside, expected)


@pytest.mark.parametrize("parts", [(), (slice(0, SIZE - 1),), (slice(0, 10), slice(11, SIZE)), (slice(1, SIZE),)])
def test_parts_that_do_not_cover_the_vector_are_refused(parts: tuple[slice, ...]) -> None:
    """By layer, every coordinate belongs to exactly one tensor."""
    with pytest.raises(UpdateError):
        compress(history()[1], Memory.empty(SIZE, SCHEMES[1]), SCHEMES[1], parts=parts, rng=rng())


def test_a_sampled_threshold_is_nearly_exact() -> None:
    """Never more than asked for, and in 50 draws all but very few of the true largest."""
    x = (rng(5).standard_normal(200_000) ** 3).astype(np.float32)
    exact = top_k(x, 2000)
    for seed in range(50):
        found = sampled_top_k(x, 2000, rng(seed))
        assert len(found) <= 2000
        assert len(np.setdiff1d(exact, found)) <= 40
        assert (np.diff(found) > 0).all()


def test_momentum_correction_sends_what_keeps_coming() -> None:
    """With a steady delta, velocity grows towards delta / (1 - correction) where nothing is sent."""
    scheme = Scheme(1e-3, 1, correction=0.5)
    delta = np.full(1000, 0.01, dtype=np.float32)
    delta[0] = 100.0
    memory = Memory.empty(1000, scheme)
    for number in range(6):
        memory = compress(delta, memory, scheme, rng=rng(number)).memory
    assert memory.velocity is not None
    assert memory.velocity[0] == 0.0
    np.testing.assert_allclose(memory.velocity[1:], 0.01 * (2 - 0.5**5), rtol=1e-4)


def test_price_removes_as_much_error_in_fewer_bits() -> None:
    """At price 1 the squared error that is removed is at least that of price 0, and the update is shorter."""
    known, delta = history(4)
    free, priced = (
        compress(delta, Memory.empty(SIZE, scheme), scheme, history=known, rng=rng())
        for scheme in (Scheme(0.05, 1), Scheme(0.05, 1, price=1.0))
    )
    energy = [float(np.square(delta[done.sent.positions].astype(np.float64)).sum()) for done in (free, priced)]
    assert energy[1] >= energy[0] * (1 - 1e-6)
    assert len(priced.data) < len(free.data)


def test_error_feedback_holds_for_every_scheme_with_context() -> None:
    """With a constant delta the mean of what is sent approaches it, whatever is sent when."""
    known, delta = history(6)
    for scheme in (Scheme(0.05, 2, price=1.0), Scheme(1.0, 1, rotated=True)):
        memory, total = Memory.empty(SIZE, scheme), np.zeros(SIZE)
        for number in range(120):
            done = compress(delta, memory, scheme, history=known, rng=rng(number))
            memory, total = done.memory, total + done.sent.dense()
        assert np.linalg.norm(total / 120 - delta) < 0.15 * np.linalg.norm(delta)


@pytest.mark.parametrize("wrong", ["memory", "history", "nan"])
def test_what_does_not_fit_together_is_refused(wrong: str) -> None:
    """Lengths that differ and values that are not finite are errors of their own, before anything is coded."""
    known, delta = history()
    memory = Memory.empty(SIZE - (wrong == "memory"), Scheme(0.05))
    if wrong == "nan":
        delta[3] = np.nan
    if wrong == "history":
        known = History(*(x[:-1] for x in (known.start, known.before, known.now)))
    with pytest.raises(UpdateError):
        compress(delta, memory, Scheme(0.05), history=known, rng=rng())


@pytest.mark.parametrize("bad", ["nan", "length", "shapes", "dtype"])
def test_an_impossible_history_is_refused(bad: str) -> None:
    """A history is three finite float32 vectors of one length, which the shapes add up to."""
    x = np.zeros(10, dtype=np.float32)
    y = {"nan": np.full(10, np.nan, dtype=np.float32), "length": x[:9], "shapes": x, "dtype": x.astype(np.float64)}[bad]
    with pytest.raises(UpdateError):
        History(x, x, y, ((3, 3),) if bad == "shapes" else ())
