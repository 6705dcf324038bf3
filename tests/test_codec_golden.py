"""The file formats do not change by accident: golden files, and the script that made them."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from edgefl.codec.update import decode
from edgefl.codec.weights import decode_weights

HERE = Path(__file__).parent / "golden"
_SPEC = importlib.util.spec_from_file_location("make_updates", HERE / "make_updates.py")
make = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(make)
FILES = make.files()


@pytest.mark.parametrize("name", sorted(FILES))
def test_the_encoder_still_writes_the_golden_bytes(name: str) -> None:
    """Every golden file is reproduced byte for byte."""
    assert FILES[name] == (HERE / name).read_bytes()


@pytest.mark.parametrize("name", sorted(make.UPDATES))
def test_golden_updates_decode_to_the_largest_values(name: str) -> None:
    """A golden file, read from disk, says what its input says, within one quantisation step."""
    size, _, bits = make.UPDATES[name]
    x = make.vector(size)
    sparse = decode((HERE / f"{name}.bin").read_bytes(), size)
    sent = np.abs(x[sparse.positions])
    step = (sent.max() - sent.min()) / max(1, (1 << (bits - 1)) - 1) if bits > 1 else sent.max() - sent.min()
    np.testing.assert_array_less(np.abs(sparse.values - x[sparse.positions]), step / (1 if bits == 1 else 2) + 1e-6)
    unsent = np.delete(np.abs(x), sparse.positions)
    assert unsent.max(initial=0.0) <= sent.min()


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 0.0), ("fp16", 5e-4), ("int8", 4e-3)])
def test_golden_weights_decode(precision: str, tolerance: float) -> None:
    """A golden weights file holds the input to its precision."""
    flat = decode_weights((HERE / f"weights-{precision}.bin").read_bytes(), make.LAYOUT)
    np.testing.assert_allclose(flat, make.vector(make.LAYOUT.size), atol=tolerance)


def test_a_header_byte_by_byte() -> None:
    """The header is what docs/update-format.md says, written out by hand."""
    data = (HERE / "update-one.bin").read_bytes()
    one = bytes.fromhex("454655 01 01 01000000 01000000 00007c3f 00007c3f 00000000 80")
    assert data == one  # one value, -504/512: magnitude 0.984375, sign bit set, no position bytes
