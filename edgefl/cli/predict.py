"""Lines in, lines out: examples as JSON arrays, predictions as JSON objects."""

from collections.abc import Iterator
from typing import BinaryIO

import msgspec
import numpy as np

from edgefl.device.model import Model
from edgefl.errors import DataError
from edgefl.layout import Float32

LONGEST_LINE = 1 << 24
"""Bytes of one example on standard input."""
ROWS = 256
"""Examples of a request: a source may hold more than should wait for one answer."""


def examples_in(stream: BinaryIO) -> Iterator[Float32]:
    """Each line's example, float32, shape `(1, ...)`; empty lines are passed over.

    Raises:
        DataError: a line is no JSON array of numbers, or longer than `LONGEST_LINE`.
    """
    number = 0
    while line := stream.readline(LONGEST_LINE + 1):
        number += 1
        if not line.strip():
            continue
        try:
            values = np.array(msgspec.json.decode(line), dtype=np.float32) if len(line) <= LONGEST_LINE else None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TypeError, ValueError, OverflowError):
            values = None
        if values is None or values.ndim < 1:
            raise DataError(
                f"line {number} of standard input is no example",
                expected=f"a JSON array of numbers, at most {LONGEST_LINE} bytes",
                found=repr(line[:40]),
            )
        yield values[None]


def lines_of(model: Model, x: Float32) -> Iterator[str]:
    """One JSON object for each example. Raises DataError, EngineError."""
    for start in range(0, len(x), ROWS):
        found = model.predict(x[start : start + ROWS])
        said = {"version": found.version, "round": found.round}
        for row, of in zip(found.probabilities, found.classes, strict=True):
            values = [round(float(value), 6) for value in row]
            answer = {"outputs": values} if found.loss == "mse" else {"class": int(of), "probabilities": values}
            yield msgspec.json.encode(answer | said).decode()
