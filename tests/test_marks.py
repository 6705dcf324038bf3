"""Weights that are gone: what marks them, how files leave them out, and what updates and histories make of it."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefl.codec.advance import advance
from edgefl.codec.compress import Memory, compress
from edgefl.codec.difference import apply_difference, encode_difference
from edgefl.codec.history import History
from edgefl.codec.marks import alive, factors, gone, has_mark, marked, prunable
from edgefl.codec.scheme import Scheme
from edgefl.codec.sparsify import count_sent
from edgefl.codec.update import decode
from edgefl.codec.weights import HEADER_LENGTH, TRAINABLE, Precision, decode_weights, dense_form, encode_weights, weights_length
from edgefl.compress.magnitude import pruned
from edgefl.errors import MessageError
from edgefl.layout import Layout, Tensor
from edgefl.plan import FleetPruning

LAYOUT = Layout(
    (
        Tensor("conv.weight", (12, 3, 3, 3)),
        Tensor("norm.weight", (12,), personal=True),
        Tensor("norm.mean", (12,), "state", personal=True),
        Tensor("own", (4, 30), personal=True),
        Tensor("fixed", (6, 20), "frozen"),
        Tensor("fc.weight", (40, 60)),
        Tensor("fc.bias", (40,)),
        Tensor("narrow", (30, 4)),
    )
)
MOST = FleetPruning(target=0.9, share=1.0, first=1)


def weights(seed=0):
    """A vector that an unpruned model may have, with true zeros in it."""
    flat = np.random.default_rng(seed).standard_normal(LAYOUT.size).astype(np.float32) * np.float32(0.1)
    flat[5:400:7] = 0.0
    return flat


def thin(seed=0, share=0.9):
    """The same, pruned."""
    return pruned(weights(seed), LAYOUT, FleetPruning(target=share, share=1.0, first=1))


def test_only_large_shared_trained_tensors_can_be_pruned():
    """Neither personal nor frozen tensors, nor statistics, biases and narrow ones."""
    found = {tensor.name for tensor, place in LAYOUT.slices() if prunable(LAYOUT)[place].any()}
    assert found == {"conv.weight", "fc.weight"}


def test_a_zero_is_there_until_it_is_marked():
    """A model with zero-initialised weights is not pruned; neither is a negative zero in a bias."""
    flat = weights()
    flat[LAYOUT.size - 130] = -0.0
    assert not gone(flat, LAYOUT).any()
    assert alive(flat, LAYOUT) is None
    assert factors(flat, LAYOUT) is None
    assert encode_weights(flat, LAYOUT, Precision.FP16)[3] == 1


@pytest.mark.parametrize("precision", TRAINABLE)
def test_a_file_brings_the_marks_and_the_other_weights(precision):
    """What is gone is gone for the reader, everything else is what the dense file says, and the file is shorter than that."""
    flat = thin()
    data = encode_weights(flat, LAYOUT, precision)
    back = decode_weights(data, LAYOUT)
    np.testing.assert_array_equal(gone(back, LAYOUT), gone(flat, LAYOUT))
    there = ~gone(flat, LAYOUT)
    np.testing.assert_array_equal(back[there], decode_weights(encode_weights(flat + 0.0, LAYOUT, precision), LAYOUT)[there])
    assert len(data) < weights_length(LAYOUT, precision)
    assert encode_weights(back, LAYOUT, precision) == data, "what was decoded is a fixed point"


def test_half_precision_makes_no_marks():
    """A weight that underflows in fp16 stays in training, whatever its sign."""
    flat = weights()
    flat[:300] = -1e-12
    assert not gone(decode_weights(encode_weights(flat, LAYOUT, Precision.FP16), LAYOUT), LAYOUT).any()


@pytest.mark.parametrize("precision", TRAINABLE)
def test_a_model_of_a_tenth_takes_a_ninth_of_dense(precision):
    """At 92 % a file of plain float32, positions included, is below a ninth of the dense one; halves and int8 far below."""
    layout = Layout((Tensor("a", (64, 784)), Tensor("b", (10, 64))))
    flat = np.random.default_rng(1).standard_normal(layout.size).astype(np.float32)
    small = pruned(flat, layout, FleetPruning(target=0.92, share=1.0, first=1, scope="global"))
    assert len(encode_weights(small, layout, precision)) * 9 <= 4 * layout.size


@pytest.mark.parametrize("precision", TRAINABLE)
def test_damage_never_gives_other_weights_silently_or_a_crash(precision):
    """Cut, longer and flipped files are refused, or decode to finite weights of the layout's length."""
    data = encode_weights(thin(), LAYOUT, precision)
    assert data[3] == 3
    rng = np.random.default_rng(2)
    for damaged in (data[:-1], data + b"\0", data[: HEADER_LENGTH + 2], data[:HEADER_LENGTH], data[:3] + b"\x01" + data[4:]):
        with pytest.raises(MessageError):
            decode_weights(damaged, LAYOUT)
    refused = 0
    for _ in range(200):
        broken = bytearray(data)
        broken[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        try:
            flat = decode_weights(bytes(broken), LAYOUT)
        except MessageError:
            refused += 1
        else:
            assert flat.shape == (LAYOUT.size,)
            assert np.isfinite(flat).all()
    assert refused > 0


def test_a_file_has_one_form_only():
    """A mark among the weights that are there is refused."""
    data = bytearray(encode_weights(thin(), LAYOUT, Precision.INT8))
    data[-1] = 0x80  # the last weight of fc that is there
    with pytest.raises(MessageError, match="mark"):
        decode_weights(bytes(data), LAYOUT)


def test_a_file_that_claims_much_is_refused_before_anything_is_allocated():
    """The length of the first part is compared with what has come."""
    data = encode_weights(thin(), LAYOUT, Precision.FP32)
    lying = data[:HEADER_LENGTH] + b"\xff\xff\xff\xff" + data[HEADER_LENGTH + 4 :]
    with pytest.raises(MessageError, match="truncated"):
        decode_weights(lying, LAYOUT)


@pytest.mark.parametrize("precision", TRAINABLE)
@pytest.mark.parametrize("shares", [(0.0, 0.5), (0.5, 0.5), (0.5, 0.55)], ids=["begins", "between", "goes on"])
def test_differences_lead_from_one_pruned_file_to_the_next(precision, shares):
    """To the last bit, also over a pruning."""
    before = thin(share=shares[0]) if shares[0] else weights()
    moved = before + np.where(np.random.default_rng(3).random(LAYOUT.size) < 0.02, 0.03, 0).astype(np.float32)
    after = pruned(marked(moved, gone(before, LAYOUT)), LAYOUT, FleetPruning(target=shares[1], share=1.0, first=1))
    base, target = (encode_weights(v, LAYOUT, precision) for v in (before, after))
    data = encode_difference(base, target, LAYOUT)
    assert data is not None
    assert apply_difference(base, data, LAYOUT) == target


def test_a_difference_of_two_pruned_files_is_worth_it():
    """Where few of the weights that are left change, it takes much less than the file."""
    before = thin()
    moved = marked(before + np.where(np.arange(LAYOUT.size) % 50 == 0, 2.0**-6, 0).astype(np.float32), gone(before, LAYOUT))
    base, target = (encode_weights(v, LAYOUT, Precision.FP32) for v in (before, moved))
    data = encode_difference(base, target, LAYOUT)
    assert data is not None
    assert len(data) * 4 < len(target)


def test_held_weights_follow_the_parent_at_once_where_it_is_gone():
    """The sparse downlink sends few changes, but never keeps a weight alive that the server has pruned."""
    held, parent = weights(), thin()
    after = advance(held, parent, 0.01, gone(parent, LAYOUT))
    np.testing.assert_array_equal(gone(after, LAYOUT), gone(parent, LAYOUT))
    changed = np.count_nonzero(after[~gone(parent, LAYOUT)] != held[~gone(parent, LAYOUT)])
    assert changed <= np.ceil(0.01 * LAYOUT.size)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 30), st.sampled_from([0.01, 0.2, 1.0]), st.booleans())
def test_held_weights_are_marked_where_the_parent_is_gone_and_nowhere_else(seed, sparsity, last):
    """Whatever negative zeros either has: in a bias they are no marks and wait their turn, and one held astray is put right."""
    rng = np.random.default_rng(seed)
    held, parent = thin(seed, 0.3), thin(seed, 0.6)
    held[rng.random(LAYOUT.size) < 0.2] = -0.0
    parent[(rng.random(LAYOUT.size) < 0.5) & ~prunable(LAYOUT)] = -0.0
    removed = gone(parent, LAYOUT)
    after = advance(held, parent, sparsity, removed, last=last)
    np.testing.assert_array_equal(has_mark(after), removed)
    if not last:
        assert np.count_nonzero((after != held)[~removed]) <= count_sent(LAYOUT.size, sparsity)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1 << 30), st.sampled_from([0.02, 0.3, 1.0]), st.booleans(), st.booleans(), st.booleans())
def test_an_update_is_about_what_is_left(seed, sparsity, by_layer, contextual, rotated):
    """What is sent and what remains make up the vector where a weight is left; of others nothing is sent or kept."""
    flat, rng = thin(seed), np.random.default_rng(seed)
    shared = LAYOUT.shared()
    left, size = alive(flat, LAYOUT), len(shared)
    rotated = rotated and sparsity == 1.0 and not by_layer
    scheme = Scheme(sparsity=sparsity, bits=4, by_layer=by_layer, correction=0.0 if rotated else 0.5, rotated=rotated)
    delta, residual = (rng.standard_normal(size).astype(np.float32) for _ in range(2))
    memory = Memory(residual, np.zeros(size, dtype=np.float32) if scheme.correction else None)
    ends = np.cumsum([0, *(t.size for t in LAYOUT.tensors if t.shared)])
    parts = [slice(a, b) for a, b in pairwise(ends)]
    shapes = tuple(t.shape for t in LAYOUT.tensors if t.shared)
    history = History(weights(seed)[shared], thin(seed, 0.5)[shared], flat[shared], shapes).only(left) if contextual else None
    done = compress(delta, memory, scheme, parts=parts, history=history, alive=left, rng=rng)
    read = decode(done.data, len(left), history).within(left, size)
    np.testing.assert_array_equal(read.dense(), done.sent.dense())
    removed = gone(flat, LAYOUT)[shared]
    assert not read.dense()[removed].any()
    assert not done.memory.residual[removed].any()
    np.testing.assert_allclose((read.dense() + done.memory.residual)[~removed], (delta + residual)[~removed], atol=1e-5)


def test_positions_cost_less_when_few_weights_are_left():
    """The same fraction of what is left, among what is left: a tenth of the weights makes about a tenth of the bytes."""
    layout = Layout((Tensor("a", (200, 300)),))
    flat = np.random.default_rng(0).standard_normal(layout.size).astype(np.float32)
    left = alive(pruned(flat, layout, MOST), layout)
    scheme, memory = Scheme(sparsity=0.1, bits=4), Memory(np.zeros_like(flat), None)
    whole, part = (compress(flat, memory, scheme, alive=places, rng=np.random.default_rng(1)).data for places in (None, left))
    assert len(part) * 9 < len(whole)


def test_dense_form_and_its_way_back_are_inverse():
    """The shorter file says exactly what the dense one does."""
    data = encode_weights(thin(), LAYOUT, Precision.INT8)
    dense = dense_form(data, LAYOUT)
    assert len(dense) == weights_length(LAYOUT, Precision.INT8)
    np.testing.assert_array_equal(decode_weights(dense, LAYOUT), decode_weights(data, LAYOUT))
