import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefl.codec.weights import (
    HEADER_LENGTH,
    PRECISIONS,
    TRAINABLE,
    Precision,
    decode_weights,
    encode_weights,
    is_quantised,
    weights_length,
)
from edgefl.errors import MessageError, ModelError
from edgefl.layout import Layout, Tensor

LAYOUT = Layout(
    (Tensor("conv", (8, 3, 3, 3)), Tensor("bias", (8,)), Tensor("scale", ()), Tensor("fc", (10, 32)), Tensor("thin", (9, 2)))
)


def vector(seed: int = 0) -> np.ndarray:
    """Random weights of LAYOUT."""
    return np.random.default_rng(seed).standard_normal(LAYOUT.size).astype(np.float32)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_length_is_known_before_encoding(precision: Precision) -> None:
    """The planner's figure is the file's length, to the byte; for weights at rest the file is never longer."""
    length = len(encode_weights(vector(), LAYOUT, precision))
    assert length <= weights_length(LAYOUT, precision)
    assert length == weights_length(LAYOUT, precision) or precision not in TRAINABLE


def test_fp32_is_exact() -> None:
    """fp32 loses nothing."""
    np.testing.assert_array_equal(decode_weights(encode_weights(vector(), LAYOUT, Precision.FP32), LAYOUT), vector())


def test_int8_is_within_half_a_step_of_each_channel() -> None:
    """Each quantised value is within half of its channel's scale, a power of two that just holds it; small tensors are exact."""
    x = vector()
    y = decode_weights(encode_weights(x, LAYOUT, Precision.INT8), LAYOUT)
    for tensor, place in LAYOUT.slices():
        if not is_quantised(tensor):
            np.testing.assert_array_equal(y[place], x[place])
            continue
        rows, decoded = (v[place].reshape(tensor.shape[0], -1) for v in (x, y))
        step = np.abs(rows).max(axis=1, keepdims=True) / 127
        assert (np.abs(rows - decoded) <= 2 ** np.ceil(np.log2(step)) / 2).all()
    assert {t.name for t in LAYOUT.tensors if is_quantised(t)} == {"conv", "fc"}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_decoded_weights_are_a_fixed_point(precision: Precision) -> None:
    """Encoding what was decoded gives nearly the same again: repeated pushes do not drift."""
    once = decode_weights(encode_weights(vector(), LAYOUT, precision), LAYOUT)
    twice = decode_weights(encode_weights(once, LAYOUT, precision), LAYOUT)
    np.testing.assert_allclose(once, twice, rtol=1e-6)


def test_zero_and_tiny_channels_survive() -> None:
    """A channel of zeros, or of subnormal numbers, is no division by zero."""
    x = np.zeros(LAYOUT.size, dtype=np.float32)
    x[:27] = 1e-42
    y = decode_weights(encode_weights(x, LAYOUT, Precision.INT8), LAYOUT)
    assert np.abs(y).max() <= 1e-37


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_that_are_not_finite_are_refused_at_both_ends(precision: Precision, bad: float) -> None:
    """NaN and infinity neither leave the server nor enter a device."""
    x = vector()
    x[-1] = bad
    with pytest.raises(ModelError):
        encode_weights(x, LAYOUT, precision)
    for good in (encode_weights(vector(), LAYOUT, p) for p in (Precision.FP32, Precision.INT8, Precision.INT4)):
        damaged = good[:HEADER_LENGTH] + np.float32(bad).tobytes() + good[HEADER_LENGTH + 4 :]
        with pytest.raises(MessageError):
            decode_weights(damaged, LAYOUT)


def test_fp16_refuses_what_it_cannot_hold() -> None:
    """A weight beyond 65504 is an error with a remedy, not an infinity."""
    x = vector()
    x[0] = 1e6
    with pytest.raises(ModelError, match="int8"):
        encode_weights(x, LAYOUT, Precision.FP16)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_another_layout_or_length_is_refused(precision: Precision) -> None:
    """A file belongs to one layout and has one length."""
    data = encode_weights(vector(), LAYOUT, precision)
    other = Layout((*LAYOUT.tensors[:-1], Tensor("thin", (2, 9))))
    for wrong in (
        data[:-1],
        data + b"\0",
        data[:10],
        b"",
        b"XXX" + data[3:],
        data[:4] + b"\x09" + data[5:],
        data[:5] + b"\xff" + data[6:],
    ):
        with pytest.raises(MessageError):
            decode_weights(wrong, LAYOUT)
    with pytest.raises(MessageError, match="another model"):
        decode_weights(data, other)
    with pytest.raises(ModelError):
        encode_weights(vector()[:-1], LAYOUT, precision)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(TRAINABLE), st.data())
def test_damaged_bodies_never_surprise_the_decoder(precision: Precision, data: st.DataObject) -> None:
    """Whatever the body holds, the result is finite or a MessageError."""
    good = bytearray(encode_weights(vector(), LAYOUT, precision))
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, len(good) - 1), st.integers(0, 255)), max_size=8)):
        good[place] = value
    try:
        flat = decode_weights(bytes(good), LAYOUT)
    except MessageError:
        return
    assert flat.shape == (LAYOUT.size,)
    assert flat.dtype == np.float32
    assert np.isfinite(flat).all()
