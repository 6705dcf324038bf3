"""The file formats do not change by accident: golden files, and the script that made them."""

import zlib
from pathlib import Path

import numpy as np
import pytest

import make_updates as make
from edgefl.codec.marks import gone
from edgefl.codec.sparsify import top_k
from edgefl.codec.update import decode, needs_history
from edgefl.codec.weights import decode_weights

HERE = Path(__file__).parent / "golden"
FILES = make.files()
CHECKSUMS = {
    "update-context-1bit": "db5e8294",
    "update-context-4bit": "82d10181",
    "update-context-flat": "ec9da303",
    "update-context-staged": "94539713",
    "update-rotated-1bit": "c81c1197",
    "update-rotated-4bit": "cc0f0e45",
}
CHECKSUMS_OF_WEIGHTS = {"int4": "ff6f8aec", "ternary": "81d8f5de", "codebook": "ef22c2de"}


@pytest.mark.parametrize("name", sorted(FILES))
def test_the_encoder_still_writes_the_golden_bytes(name: str) -> None:
    """Every golden file is reproduced byte for byte."""
    assert FILES[name] == (HERE / name).read_bytes()


@pytest.mark.parametrize("name", sorted({**make.UPDATES, **make.DIVIDED}))
def test_golden_updates_decode_to_the_largest_values(name: str) -> None:
    """A golden file, read from disk, says what its input says, within one quantisation step."""
    size, _, bits, *_ = {**make.UPDATES, **make.DIVIDED}[name]
    x = make.vector(size)
    sparse = decode((HERE / f"{name}.bin").read_bytes(), size)
    sent = np.abs(x[sparse.positions])
    step = (sent.max() - sent.min()) / max(1, (1 << (bits - 1)) - 1) if bits > 1 else sent.max() - sent.min()
    np.testing.assert_array_less(np.abs(sparse.values - x[sparse.positions]), step / (1 if bits == 1 else 2) + 1e-6)
    unsent = np.delete(np.abs(x), sparse.positions)
    assert unsent.max(initial=0.0) <= sent.min()


@pytest.mark.parametrize("name", sorted(make.CONTEXTUAL))
def test_golden_updates_in_context_decode_to_the_largest_values(name: str) -> None:
    """A golden file of version 2, read with its history, says what its input says, within one quantisation step."""
    shapes, count, bits, _ = make.CONTEXTUAL[name]
    x = make.vector(1000)
    data = (HERE / f"{name}.bin").read_bytes()
    assert needs_history(data)
    sparse = decode(data, 1000, make.history(shapes))
    np.testing.assert_array_equal(sparse.positions, top_k(x, count))
    sent = np.abs(x[sparse.positions])
    step = (sent.max() - sent.min()) / max(1, (1 << (bits - 1)) - 1)
    np.testing.assert_allclose(sparse.values, x[sparse.positions], rtol=0, atol=step + 1e-6)


@pytest.mark.parametrize(("name", "error"), [("update-rotated-1bit", 0.8), ("update-rotated-4bit", 0.03)])
def test_golden_rotated_updates_decode(name: str, error: float) -> None:
    """A golden file of version 3 is its input to the mean squared error that its bits allow."""
    size, _ = make.ROTATED[name]
    x = make.vector(size)
    values = decode((HERE / f"{name}.bin").read_bytes(), size).values
    assert np.square(values - x).sum() < error * np.square(x).sum()
    np.testing.assert_allclose(values @ x, x @ x, rtol=1e-5)


def test_golden_values_to_the_last_bit() -> None:
    """What a decoder must read is the same bits on every machine: their checksums."""
    found = {}
    for name in (*make.CONTEXTUAL, *make.ROTATED):
        size = make.ROTATED.get(name, (1000,))[0]
        known = make.history(make.CONTEXTUAL[name][0]) if name in make.CONTEXTUAL else None
        sparse = decode((HERE / f"{name}.bin").read_bytes(), size, known)
        found[name] = f"{zlib.crc32(sparse.dense().astype('<f4').tobytes()):08x}"
    assert found == CHECKSUMS


@pytest.mark.parametrize(
    ("precision", "tolerance"),
    [("fp32", 0.0), ("fp16", 5e-4), ("int8", 4e-3), ("int4", 0.08), ("ternary", 0.6), ("codebook", 0.0)],
)
def test_golden_weights_decode(precision: str, tolerance: float) -> None:
    """A golden weights file holds the input to its precision."""
    flat = decode_weights((HERE / f"weights-{precision}.bin").read_bytes(), make.LAYOUT)
    np.testing.assert_allclose(flat, make.vector(make.LAYOUT.size), atol=tolerance)


@pytest.mark.parametrize("precision", ["int4", "ternary", "codebook"])
def test_golden_coded_weights_decode_to_the_last_bit(precision: str) -> None:
    """Entropy-coded weights are read as the same bits everywhere; a codebook of few values loses nothing."""
    data = (HERE / f"weights-{precision}-coded.bin").read_bytes()
    assert data[5] > 0
    flat = decode_weights(data, make.LARGE)
    assert f"{zlib.crc32(flat.astype('<f4').tobytes()):08x}" == CHECKSUMS_OF_WEIGHTS[precision]
    if precision == "codebook":
        np.testing.assert_array_equal(flat, make.pruned(make.LARGE.size))


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 0.0), ("fp16", 0.0), ("int8", 4e-3)])
def test_golden_masked_weights_decode_with_what_is_gone(precision: str, tolerance: float) -> None:
    """The marks are where they were, to the last bit, and the other weights are what the precision makes of them."""
    data = (HERE / f"weights-{precision}-masked.bin").read_bytes()
    assert data[3] == 3
    flat, wanted = decode_weights(data, make.LARGE), make.without(make.LARGE.size)
    np.testing.assert_array_equal(gone(flat, make.LARGE), gone(wanted, make.LARGE))
    np.testing.assert_allclose(flat, wanted, atol=tolerance)


def test_a_header_byte_by_byte() -> None:
    """The header is what docs/update-format.md says, written out by hand."""
    data = (HERE / "update-one.bin").read_bytes()
    one = bytes.fromhex("454655 01 01 01000000 01000000 00007c3f 00007c3f 00000000 80")
    assert data == one  # one value, -504/512: magnitude 0.984375, sign bit set, no position bytes
