"""Weights at rest: int4, ternary and codebook files, and the coder under them."""

import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefl.codec.fewbits import rounded
from edgefl.codec.lanes import LaneReader, LaneWriter, Odds
from edgefl.codec.precision import PRECISIONS, TRAINABLE, Precision, is_quantised
from edgefl.codec.sharing import MAX_CENTROIDS, nearest, shared_values
from edgefl.codec.symbols import PACKED, Shape, packed_size, read_symbols, write_symbols
from edgefl.codec.weights import HEADER_LENGTH, decode_weights, encode_weights, weights_length
from edgefl.errors import MessageError
from edgefl.layout import Float32, Layout, Tensor

AT_REST = tuple(p for p in PRECISIONS if p not in TRAINABLE)
LAYOUT = Layout(
    (
        Tensor("conv", (8, 3, 3, 3)),
        Tensor("bias", (8,)),
        Tensor("mean", (8,), "state"),
        Tensor("fc", (12, 20)),
        Tensor("thin", (9, 2)),
        Tensor("scale", ()),
    )
)
MILLION = Layout((Tensor("w", (1000, 1000)), Tensor("b", (1000,))))


def pruned(layout: Layout, share: float, seed: int = 0) -> Float32:
    """Random weights of which this share is zero."""
    rng = np.random.default_rng(seed)
    flat = rng.standard_normal(layout.size).astype(np.float32)
    flat[rng.random(layout.size) < share] = 0
    return flat


def entropy(symbols: np.ndarray) -> float:
    """Of the symbols' frequencies, in bytes for all of them."""
    share = np.bincount(symbols.reshape(-1)) / symbols.size
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum()) * symbols.size / 8


@pytest.mark.parametrize("precision", AT_REST)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95, 1.0])
def test_what_was_decoded_is_a_fixed_point(precision: Precision, share: float) -> None:
    """Encoding what was decoded gives the very same file, however many weights are zero."""
    data = encode_weights(pruned(LAYOUT, share), LAYOUT, precision)
    assert encode_weights(decode_weights(data, LAYOUT), LAYOUT, precision) == data


@pytest.mark.parametrize("precision", [Precision.INT4, Precision.TERNARY])
@pytest.mark.parametrize("share", [0.0, 0.9, 1.0])
def test_rounding_is_what_a_file_does(precision: Precision, share: float) -> None:
    """To the last bit, without the file."""
    flat = pruned(LAYOUT, share)
    written = decode_weights(encode_weights(flat, LAYOUT, precision), LAYOUT)
    assert rounded(flat, LAYOUT, precision).tobytes() == written.tobytes()


@pytest.mark.parametrize("precision", AT_REST)
def test_pruned_weights_stay_pruned(precision: Precision) -> None:
    """A weight that is zero is zero on the device."""
    flat = pruned(LAYOUT, 0.8)
    assert not decode_weights(encode_weights(flat, LAYOUT, precision), LAYOUT)[flat == 0].any()


@pytest.mark.parametrize(("precision", "error"), [(Precision.INT4, 0.014), (Precision.TERNARY, 0.2), (Precision.CODEBOOK, 0.002)])
def test_errors_are_what_the_method_promises(precision: Precision, error: float) -> None:
    """Of normally distributed weights: int4 with clipping, ternary near the best possible 0.190, a codebook its tolerance."""
    layout = Layout((Tensor("w", (100, 1000)),))
    flat = pruned(layout, 0.0)
    found = decode_weights(encode_weights(flat, layout, precision), layout)
    assert float(np.square(found - flat).sum()) <= error * float(np.square(flat).sum())


def test_values_that_few_share_are_kept_exactly() -> None:
    """A model that was retrained to share values keeps them to the last bit, biases and all; state is always kept."""
    rng = np.random.default_rng(1)
    flat = np.empty(LAYOUT.size, dtype=np.float32)
    for _, place in LAYOUT.slices():
        table = np.append(rng.standard_normal(MAX_CENTROIDS // 3).astype(np.float32), 0)
        flat[place] = rng.choice(table, place.stop - place.start)
    np.testing.assert_array_equal(decode_weights(encode_weights(flat, LAYOUT, Precision.CODEBOOK), LAYOUT), flat)
    flat = pruned(LAYOUT, 0.0)
    state = next(place for tensor, place in LAYOUT.slices() if tensor.role == "state")
    decoded = decode_weights(encode_weights(flat, LAYOUT, Precision.CODEBOOK), LAYOUT)
    np.testing.assert_array_equal(decoded[state], flat[state])


@pytest.mark.parametrize("precision", [Precision.INT4, Precision.TERNARY])
def test_what_is_not_quantised_is_exact(precision: Precision) -> None:
    """Biases, thin tensors, scalars and state."""
    flat = pruned(LAYOUT, 0.0)
    decoded = decode_weights(encode_weights(flat, LAYOUT, precision), LAYOUT)
    for tensor, place in LAYOUT.slices():
        if not is_quantised(tensor):
            np.testing.assert_array_equal(decoded[place], flat[place])


@pytest.mark.parametrize("precision", AT_REST)
def test_a_million_parameters_take_about_a_second(precision: Precision) -> None:
    """Both ways; the limit is generous, because other work may share the machine."""
    flat = pruned(MILLION, 0.9)
    began = time.perf_counter()
    data = encode_weights(flat, MILLION, precision)
    decode_weights(data, MILLION)
    assert time.perf_counter() - began < 12


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(1, 20), st.integers(1, 40), st.integers(0, 254), st.floats(0, 1))
def test_symbols_are_read_as_they_were_written(seed: int, rows: int, columns: int, kinds: int, zeros: float) -> None:
    """Any matrix, in whichever form is shorter, which is never longer than the packed one."""
    rng = np.random.default_rng(seed)
    symbols = (
        rng.integers(1, kinds + 1, (rows, columns)) * (rng.random((rows, columns)) >= zeros)
        if kinds
        else np.zeros((rows, columns))
    )
    shape = Shape(rows, columns, kinds)
    matrices = [(shape, symbols.astype(np.uint8))] * 2
    form, data = write_symbols(matrices)
    assert len(data) <= 2 * packed_size(shape)
    for found in read_symbols(form, memoryview(data), [shape, shape]):
        np.testing.assert_array_equal(found, symbols)


def test_the_code_is_close_to_the_entropy_and_below_it_where_columns_are_dead() -> None:
    """Within 2 % where there is nothing to learn; shorter than symbols without context where half of the columns are empty."""
    rng = np.random.default_rng(0)
    symbols = (rng.integers(1, 33, (500, 800)) * (rng.random((500, 800)) < 0.06)).astype(np.uint8)
    shape = Shape(500, 800, 32)
    form, plain = write_symbols([(shape, symbols)])
    assert form != PACKED
    assert len(plain) < 1.02 * entropy(symbols)
    dead = symbols.copy()
    dead[:, rng.permutation(800)[:400]] = 0
    assert len(write_symbols([(shape, dead)])[1]) < 0.97 * entropy(dead)


def test_odds_stay_strictly_between_never_and_always() -> None:
    """However long only zeros or only ones come, the next bit can be either."""
    odds = Odds(2)
    contexts = np.arange(2).repeat(2048)
    for _ in range(40):
        odds.learn(contexts, contexts == 1)
        assert (odds.of(np.arange(2)) > 0).all()
        assert (odds.of(np.arange(2)) < 1 << 15).all()


@pytest.mark.parametrize("lanes_log", [0, 3, 12])
def test_lanes_give_back_what_they_took(lanes_log: int) -> None:
    """Steps of any width up to the number of lanes, of any odds; the reader ends exactly at the end."""
    rng = np.random.default_rng(lanes_log)
    widths = [int(rng.integers(1, (1 << lanes_log) + 1)) for _ in range(50)]
    contexts = [rng.integers(0, 9, width) for width in widths]
    bits = [rng.random(width) < c / 8 for c, width in zip(contexts, widths, strict=True)]
    writer, odds = LaneWriter(lanes_log), Odds(9)
    for c, b in zip(contexts, bits, strict=True):
        writer.code(c, odds, b)
    data = writer.finish()
    reader, odds = LaneReader(memoryview(data), lanes_log), Odds(9)
    for c, b in zip(contexts, bits, strict=True):
        np.testing.assert_array_equal(reader.code(c, odds, np.zeros(0, dtype=np.bool_)), b)
    reader.finish()
    with pytest.raises(MessageError):
        LaneReader(memoryview(data + b"\0\0"), lanes_log).finish()


def test_shared_values_are_the_nearest_and_as_few_as_the_tolerance_allows() -> None:
    """Zero is one of them; a larger tolerance needs no more; each value takes the nearest."""
    values = pruned(MILLION, 0.5)[:20_000]
    sizes = []
    for tolerance in (2e-3, 1e-2, 1e-1):
        table = shared_values(values, tolerance)
        chosen = table[nearest(table, values)]
        assert 0 in table
        assert float(np.square(chosen - values).sum()) <= tolerance * float(np.square(values).sum())
        np.testing.assert_array_equal(np.abs(chosen - values), np.abs(table[:, None] - values).min(axis=0))
        sizes.append(len(table))
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 3


@pytest.mark.parametrize("scale", [1e-40, 1e-20, 1e20, 1e30])
@pytest.mark.parametrize("precision", AT_REST)
def test_weights_of_any_size_survive(precision: Precision, scale: float) -> None:
    """From subnormal numbers to the largest that are sent, values stay finite and of their order of magnitude."""
    flat = (pruned(LAYOUT, 0.1) * scale).astype(np.float32)
    decoded = decode_weights(encode_weights(flat, LAYOUT, precision), LAYOUT)
    assert np.abs(decoded).max() <= 4 * max(float(np.abs(flat).max()), 1e-37)
    assert scale < 1e-37 or np.abs(decoded).max() > 0.3 * np.abs(flat).max()


FILES = {(p, share): encode_weights(pruned(LAYOUT, share), LAYOUT, p) for p in AT_REST for share in (0.0, 0.9)}


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(sorted(FILES)), st.data())
def test_damaged_files_give_finite_weights_or_an_error(key: tuple[Precision, float], data: st.DataObject) -> None:
    """Flipped, cut or lengthened: a MessageError, or finite weights of the layout."""
    damaged = bytearray(FILES[key])
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, len(damaged) - 1), st.integers(0, 255)), max_size=6)):
        damaged[place] = value
    if data.draw(st.booleans()):
        damaged = damaged[: data.draw(st.integers(0, len(damaged)))] + data.draw(st.binary(max_size=8))
    try:
        flat = decode_weights(bytes(damaged), LAYOUT)
    except MessageError:
        return
    assert flat.shape == (LAYOUT.size,)
    assert np.isfinite(flat).all()


def test_impossible_tables_scales_and_forms_are_refused() -> None:
    """A table that does not ascend, a scale of zero or less, an unknown form, symbols beyond the table."""
    book, four = FILES[Precision.CODEBOOK, 0.9], FILES[Precision.INT4, 0.9]
    table = HEADER_LENGTH + 4 * 8  # behind the state
    swapped = book[: table + 1] + book[table + 5 : table + 9] + book[table + 1 : table + 5] + book[table + 9 :]
    scale = HEADER_LENGTH + 4 * (8 + 8 + 18 + 1)
    for bad in (
        swapped,
        book[:table] + b"\xff" + book[table + 1 :],
        four[:scale] + b"\0\0" + four[scale + 2 :],
        four[:scale] + b"\x80\xbf" + four[scale + 2 :],
        four[:5] + b"\x0e" + four[6:],
        four[:6] + b"\1" + four[7:],
        four[:3] + b"\1" + four[4:],
    ):
        with pytest.raises(MessageError):
            decode_weights(bad, LAYOUT)


def test_memory_is_bounded_by_the_layout() -> None:
    """A short file of a large layout, whatever it says, allocates a small multiple of the weights."""
    header = encode_weights(pruned(MILLION, 1.0), MILLION, Precision.CODEBOOK)
    rng = np.random.default_rng(0)
    tracemalloc.start()
    for form in range(16):
        lie = header[:5] + bytes([form]) + header[6:HEADER_LENGTH] + b"\x3f" + rng.bytes(2000)
        with pytest.raises(MessageError):
            decode_weights(lie, MILLION)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40 * MILLION.size


@pytest.mark.parametrize("precision", AT_REST)
def test_the_bound_holds_for_hostile_weights(precision: Precision) -> None:
    """Weights that no model predicts take no more than the packed form."""
    for layout in (LAYOUT, Layout((Tensor("b", (3,)),))):
        for seed in range(5):
            flat = np.random.default_rng(seed).uniform(-1, 1, layout.size).astype(np.float32)
            assert len(encode_weights(flat, layout, precision)) <= weights_length(layout, precision)


def test_the_format_is_documented() -> None:
    """Every precision has its line in the description of the formats."""
    text = (Path(__file__).parent.parent / "docs" / "update-format.md").read_text()
    for code, precision in enumerate(PRECISIONS):
        assert f"{code} {precision}" in text
