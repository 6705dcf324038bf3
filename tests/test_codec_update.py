import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefl.codec.sparsify import count_sent, top_k
from edgefl.codec.update import HEADER_LENGTH, decode, encode, max_length
from edgefl.codec.values import dequantise, levels, quantise
from edgefl.errors import UpdateError

SETTINGS = [(p, bits) for p in (0.001, 0.01, 0.1, 0.3, 0.5, 0.9, 1.0) for bits in (1, 2, 4, 8)]


def delta(size: int, seed: int = 0) -> np.ndarray:
    """Heavy-tailed values, as updates have them."""
    return (np.random.default_rng(seed).standard_normal(size) ** 3).astype(np.float32)


def rng(seed: int = 0) -> np.random.Generator:
    """A seeded generator."""
    return np.random.default_rng(seed)


@pytest.mark.parametrize(("sparsity", "bits"), SETTINGS)
def test_sent_plus_residual_is_the_delta(sparsity: float, bits: int) -> None:
    """Nothing is lost: what is sent and what is kept add up to the input, to float32 rounding."""
    x = delta(5000)
    before = x.copy()
    encoded = encode(x, sparsity=sparsity, bits=bits, rng=rng())
    np.testing.assert_allclose(encoded.sent.dense() + encoded.residual, x, rtol=3e-7, atol=1e-6 * np.abs(x).max())
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize(("sparsity", "bits"), SETTINGS)
def test_decode_reads_exactly_what_the_encoder_says_it_sent(sparsity: float, bits: int) -> None:
    """The device knows to the last bit what the server reads, so error feedback is exact."""
    encoded = encode(delta(5000), sparsity=sparsity, bits=bits, rng=rng())
    sparse = decode(encoded.data, 5000)
    np.testing.assert_array_equal(sparse.positions, encoded.sent.positions)
    np.testing.assert_array_equal(sparse.values, encoded.sent.values)
    assert len(sparse.positions) == count_sent(5000, sparsity)
    assert len(encoded.data) <= max_length(5000)


def test_error_feedback_delivers_everything_in_the_end() -> None:
    """With a constant delta, the mean of what was sent approaches it although each update carries 2 %."""
    x, residual, total = delta(2000), np.zeros(2000, dtype=np.float32), np.zeros(2000)
    rounds = 300
    for number in range(rounds):
        encoded = encode(x + residual, sparsity=0.02, bits=4, rng=rng(number))
        residual = encoded.residual
        total += encoded.sent.dense()
    assert np.linalg.norm(total / rounds - x) < 0.15 * np.linalg.norm(x)


@pytest.mark.parametrize(
    ("sparsity", "size", "count"), [(0.01, 1000, 10), (0.0001, 1000, 1), (0.07, 100, 7), (1.0, 5, 5), (0.011, 1000, 11)]
)
def test_k_is_the_fraction_rounded_up(sparsity: float, size: int, count: int) -> None:
    """The count is max(1, ceil(p*n)), without surprises from binary fractions."""
    assert count_sent(size, sparsity) == count


def test_ties_go_to_the_lower_position() -> None:
    """Equal magnitudes are chosen from the left, so that encoding is deterministic."""
    x = np.array([1, -2, 2, 0.5, -2, 2], dtype=np.float32)
    assert top_k(x, 3).tolist() == [1, 2, 4]
    assert top_k(np.ones(6, dtype=np.float32), 2).tolist() == [0, 1]


def test_zeros_are_not_sent() -> None:
    """A zero coordinate carries nothing; a vector of zeros still makes a valid update."""
    x = np.array([0, 3, 0, -1, 0], dtype=np.float32)
    assert top_k(x, 5).tolist() == [1, 3]
    zeros = encode(np.zeros(10, dtype=np.float32), sparsity=1.0, bits=4, rng=rng())
    assert not decode(zeros.data, 10).dense().any()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_stochastic_rounding_is_unbiased(bits: int) -> None:
    """The mean over many roundings is the value itself, within five standard errors."""
    x = delta(50)
    draws = 2000
    total = np.zeros(50)
    generator = rng(7)
    for _ in range(draws):
        q = quantise(x, bits, generator)
        total += dequantise(q.codes, q.low, q.high, bits)
    step = (np.abs(x).max() - np.abs(x).min()) / ((1 << (bits - 1)) - 1)
    np.testing.assert_allclose(total / draws, x, atol=5 * step / 2 / np.sqrt(draws))


@pytest.mark.parametrize("bits", range(2, 9))
def test_values_on_the_levels_stay_put(bits: int) -> None:
    """Quantising quantised values changes nothing."""
    x = levels(0.25, 3.75, bits)
    q = quantise(x, bits, rng())
    np.testing.assert_allclose(dequantise(q.codes, q.low, q.high, bits), x, rtol=1e-6)


@pytest.mark.parametrize("bits", range(1, 9))
def test_equal_magnitudes_are_exact(bits: int) -> None:
    """A zero range of magnitudes is no division by zero, and signs are kept."""
    x = np.array([0.3, -0.3, 0.3], dtype=np.float32)
    np.testing.assert_array_equal(encode(x, sparsity=1.0, bits=bits, rng=rng()).sent.values, x)


def test_one_bit_sends_the_mean_magnitude() -> None:
    """One bit per value: sign and mean magnitude of what is sent."""
    x = np.array([1, -3, 0.1, 0.1], dtype=np.float32)
    np.testing.assert_array_equal(
        encode(x, sparsity=0.5, bits=1, rng=rng()).sent.dense(), np.array([2, -2, 0, 0], dtype=np.float32)
    )


def test_same_seed_same_bytes() -> None:
    """Encoding is a function of its arguments."""
    assert encode(delta(999), sparsity=0.1, bits=3, rng=rng(5)).data == encode(delta(999), sparsity=0.1, bits=3, rng=rng(5)).data


def test_extreme_float32_values_survive() -> None:
    """The largest and the smallest float32 values make finite updates."""
    x = np.array([3.4028235e38, -3.4028235e38, 1e-45, -1e-38], dtype=np.float32)
    for bits in (1, 2, 8):
        encoded = encode(x, sparsity=1.0, bits=bits, rng=rng())
        assert np.isfinite(decode(encoded.data, 4).values).all()


@pytest.mark.parametrize("bad", [np.array([1, np.nan]), np.array([np.inf, 1]), np.zeros((2, 2)), np.zeros(0)])
def test_a_vector_that_cannot_be_sent_is_refused(bad: np.ndarray) -> None:
    """A diverged or misshapen delta is an error on the device, not a file."""
    with pytest.raises(UpdateError):
        encode(bad.astype(np.float32), sparsity=0.5, bits=2, rng=rng())


@pytest.mark.parametrize(("sparsity", "bits"), [(0.0, 4), (1.5, 4), (float("nan"), 4), (0.1, 0), (0.1, 9)])
def test_settings_out_of_range_are_refused(sparsity: float, bits: int) -> None:
    """The codec does not guess what an impossible setting means."""
    with pytest.raises(UpdateError):
        encode(delta(10), sparsity=sparsity, bits=bits, rng=rng())


def header(**changes: object) -> bytes:
    """A valid header but for the changes."""
    fields = {"magic": b"EFU", "version": 1, "bits": 4, "size": 100, "count": 1, "low": 1.0, "high": 1.0, "divisor": 69} | changes
    return struct.pack("<3sBBIIffI", *fields.values())


@pytest.mark.parametrize(
    "changes",
    [
        {"magic": b"EFX"},
        {"version": 2},
        {"bits": 0},
        {"bits": 9},
        {"size": 99},
        {"size": 2**32 - 1},
        {"count": 0},
        {"count": 101},
        {"count": 2**32 - 1},
        {"low": float("nan")},
        {"high": float("inf")},
        {"low": -1.0},
        {"low": 2.0},
        {"bits": 1, "high": 2.0},
        {"divisor": 0},
        {"divisor": 101},
        {"divisor": 2**32 - 1},
    ],
)
def test_every_impossible_header_is_refused(changes: dict[str, object]) -> None:
    """Each field is checked against what the receiver expects, before anything is allocated."""
    with pytest.raises(UpdateError):
        decode(header(**changes) + bytes(40), 100)


@pytest.mark.parametrize(("sparsity", "bits"), [(0.01, 1), (0.1, 4), (0.4, 2), (0.9, 3), (1.0, 8)])
def test_truncated_and_prolonged_files_are_refused(sparsity: float, bits: int) -> None:
    """Every proper prefix of a file, and every file with a byte more, is an UpdateError."""
    data = encode(delta(300), sparsity=sparsity, bits=bits, rng=rng()).data
    for length in range(len(data)):
        with pytest.raises(UpdateError):
            decode(data[:length], 300)
    for junk in (b"\0", b"\xff", data):
        with pytest.raises(UpdateError):
            decode(data + junk, 300)


@pytest.mark.parametrize(("sparsity", "bits"), [(0.01, 1), (0.1, 4), (0.4, 2), (0.9, 3), (1.0, 8)])
def test_flipped_bits_are_refused_or_decode_to_bounded_values(sparsity: float, bits: int) -> None:
    """Each single flipped bit gives an UpdateError or a finite vector within the header's own scale; never anything else."""
    data = encode(delta(120), sparsity=sparsity, bits=bits, rng=rng()).data
    for place in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << (place % 8)
        check(bytes(damaged), 120)


def check(data: bytes, size: int) -> None:
    """Either refused, or a well-formed sparse vector."""
    try:
        sparse = decode(data, size)
    except UpdateError:
        return
    assert sparse.size == size
    assert 1 <= len(sparse.positions) == len(sparse.values) <= size
    assert sparse.positions[0] >= 0
    assert sparse.positions[-1] < size
    assert (np.diff(sparse.positions) > 0).all()
    assert np.isfinite(sparse.values).all()
    high = struct.unpack_from("<f", data, 17)[0]
    assert np.abs(sparse.values).max() <= high


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=200), st.integers(1, 300))
def test_random_bytes_never_surprise_the_decoder(data: bytes, size: int) -> None:
    """Arbitrary bytes, of any length, are refused or well-formed."""
    check(data, size)


@settings(max_examples=600, deadline=None)
@given(
    bits=st.integers(1, 8),
    size=st.integers(1, 300),
    count=st.integers(1, 300),
    low=st.floats(0, 1, width=32),
    high=st.floats(1, 2, width=32),
    divisor=st.integers(0, 300),
    body=st.binary(max_size=300),
)
def test_a_plausible_header_with_any_body_never_surprises_the_decoder(
    bits: int, size: int, count: int, low: float, high: float, divisor: int, body: bytes
) -> None:
    """Past the header, too, everything is refused or well-formed."""
    check(struct.pack("<3sBBIIffI", b"EFU", 1, bits, size, count, low, high, divisor) + body, size)


def test_a_lying_file_takes_no_memory() -> None:
    """A short file that claims 2**32-1 coordinates or a file of a million bytes for a small model allocates next to nothing."""
    tracemalloc.start()
    for data, size in (
        (header(size=2**32 - 1, count=2**32 - 1) + bytes(100), 1000),
        (bytes(1_000_000), 1000),
        (header(size=1 << 28, count=1 << 27, divisor=0) + bytes(100), 1 << 28),
    ):
        with pytest.raises(UpdateError):
            decode(data, size)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000


def test_a_sparse_update_is_hundreds_of_times_smaller() -> None:
    """At one per cent and one bit, a model of 199,210 parameters sends 350 times less than float32, with the header."""
    size = 199_210
    data = encode(delta(size), sparsity=0.01, bits=1, rng=rng()).data
    assert 4 * size / len(data) > 345
    assert len(data) < HEADER_LENGTH + 2290
