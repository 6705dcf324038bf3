"""Golden files: a few inputs, and how far outputs are from what a variant must give for them."""

import numpy as np
import pytest

from edgefl.codec.golden import decode_golden, encode_golden, farthest, golden_inputs, golden_length
from edgefl.errors import MessageError


def test_golden_files_are_small_repeatable_and_checked():
    """The same inputs every time, as long as was said, also for large images; a file of another model is refused."""
    for shape, classes in (((6,), 3), ((3, 96, 96), 10), ((1, 28, 28), 100)):
        inputs = golden_inputs(shape, classes)
        np.testing.assert_array_equal(inputs, golden_inputs(shape, classes))
        wanted = np.arange(len(inputs) * classes, dtype=np.float32).reshape(len(inputs), classes)
        data = encode_golden(inputs, wanted)
        assert len(data) == golden_length(shape, classes) <= max(32 * 1024 + 16, np.prod(shape) + 4 * classes + 16)
        read = decode_golden(data, shape, classes)
        np.testing.assert_array_equal(read[0], inputs)
        np.testing.assert_array_equal(read[1], wanted)
        for wrong in (b"", data[:10], data[:-1], data + b"x", b"EFG2" + data[4:]):
            with pytest.raises(MessageError):
                decode_golden(wrong, shape, classes)
        with pytest.raises(MessageError):
            decode_golden(data, shape, classes + 1)


def test_distance_from_golden_outputs_counts_absolute_and_relative():
    """Exactly at the tolerance it is 1; NaN and another shape are infinitely far."""
    wanted = np.array([[0.0, 100.0]], np.float32)
    assert farthest(wanted + np.float32([[1e-3, 0.0]]), wanted, 1e-3) == pytest.approx(1.0, rel=1e-3)
    assert farthest(wanted + np.float32([[0.0, 0.101]]), wanted, 1e-3) == pytest.approx(1.0, rel=1e-2)
    assert farthest(np.full_like(wanted, np.nan), wanted, 1e-3) == np.inf
    assert farthest(wanted[:, :1], wanted, 1e-3) == np.inf
