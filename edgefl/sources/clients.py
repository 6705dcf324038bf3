"""Whose each example of a source is, where the data itself says so."""

from typing import TYPE_CHECKING

import numpy as np

from edgefl.errors import DataError
from edgefl.layout import Index
from edgefl.sources.npz import NpzSource, read_npz
from edgefl.sources.windows import WindowsSource

if TYPE_CHECKING:
    from edgefl.sources.parse import Source


def clients_of(source: "Source") -> Index:
    """The client of each example that the source loads, int64, shape `(n,)`.

    Raises:
        DataError: the source does not say, or cannot be read.
    """
    match source:
        case NpzSource(path=path, client=None):
            owners = read_npz(path, ("client",))["client"]
            if owners.ndim != 1 or owners.dtype.kind not in "ui":
                raise DataError(f"array 'client' of {path} does not fit", expected="an integer for each example")
            return owners.astype(np.int64)
        case WindowsSource():
            return source.clients()
    raise DataError(
        "this data does not say whose its examples are",
        expected="a numpy archive with an array 'client', or windows of a recording",
        remedy="Use another split",
    )
