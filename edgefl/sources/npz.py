"""Numpy archives: `x` (inputs), `y` (labels or targets, if any), and `client` (whose example it is) if one client is wanted.

Rules: no pickle; what an array's header declares must be what the archive holds, and within the bound, before it is allocated.
"""

import math
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from edgefl.errors import DataError
from edgefl.examples import Examples
from edgefl.sources.arrays import MAX_VALUES, Array, examples_of, missing

_FAULTS = (
    *(OSError, EOFError, zlib.error, zipfile.BadZipFile),
    *(NotImplementedError, RuntimeError),  # a compression method or encryption that zipfile does not know
    *(ValueError, SyntaxError, tokenize.TokenError),  # numpy parses an array's header as Python text
)


@dataclass(frozen=True, slots=True)
class NpzSource:
    """Examples in a numpy archive.

    Attributes:
        path: the `.npz` file.
        client: only examples whose entry in the array `client` is this; None takes all.
    """

    path: Path
    client: int | None = None

    def load(self) -> Examples:
        """All examples, or one client's. Raises DataError."""
        required = ("x",) if self.client is None else ("x", "client")
        found = read_npz(self.path, required, optional=("y",))
        x, y = found["x"], found.get("y")
        if self.client is None:
            return examples_of(x, y, str(self.path))
        owner = found["client"]
        lengths = {array.shape[0] if array.ndim else 0 for array in found.values()}
        if owner.ndim != 1 or owner.dtype.kind not in "ui" or len(lengths) != 1:
            raise DataError(f"array 'client' of {self.path} does not fit", expected="an integer for each example")
        rows = np.flatnonzero(owner == self.client)
        if not len(rows):
            known = ", ".join(map(str, np.unique(owner)[:10]))
            raise DataError(f"{self.path} has no examples of client {self.client}", expected=f"one of {known}")
        return examples_of(x[rows], None if y is None else y[rows], f"{self.path}, client {self.client}")


def read_npz(path: Path, required: tuple[str, ...], *, optional: tuple[str, ...] = ()) -> dict[str, Array]:
    """The named arrays of an archive, by name; those that are optional only if they are there.

    Raises:
        DataError: the file is missing, damaged, no archive, lacks a required array, or an array needs pickle or is too large.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            there = {name.removesuffix(".npy") for name in archive.namelist()}
            names = (*required, *(name for name in optional if name in there))
            return {name: _read(archive, path, name) for name in names}
    except FileNotFoundError:
        raise missing(path) from None
    except _FAULTS as error:
        raise DataError(
            f"{path} cannot be read as a numpy archive", found=str(error), remedy="Write it with numpy.savez"
        ) from error


def _read(archive: zipfile.ZipFile, path: Path, name: str) -> Array:
    if f"{name}.npy" not in archive.namelist():
        found = ", ".join(sorted(n.removesuffix(".npy") for n in archive.namelist()[:10]))
        raise DataError(f"{path} has no array {name!r}", expected="arrays x and y", found=found or "an empty archive")
    length = archive.getinfo(f"{name}.npy").file_size
    with archive.open(f"{name}.npy") as file:
        version = npy.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise DataError(f"array {name!r} of {path} has an unknown format", expected="npy 1.0 or 2.0", found=f"{version}")
        header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = header(file)
        if dtype.hasobject:
            raise DataError(f"array {name!r} of {path} holds Python objects", remedy="Save plain numbers: they need no pickle")
        declared = math.prod(shape)
        if declared > MAX_VALUES or min(shape, default=0) < 0:
            raise DataError(f"array {name!r} of {path} is too large", expected=f"at most {MAX_VALUES} values", found=f"{shape}")
        if declared * dtype.itemsize != length - file.tell():
            raise DataError(
                f"array {name!r} of {path} does not hold what its header says",
                expected=f"{declared * dtype.itemsize} bytes",
                found=f"{length - file.tell()}",
            )
    with archive.open(f"{name}.npy") as file:
        array: Array = npy.read_array(file, allow_pickle=False)
        return array
