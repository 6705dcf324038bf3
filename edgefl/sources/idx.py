"""The idx format of MNIST and its relatives (http://yann.lecun.com/exdb/mnist/), plain or gzip.

    0  2  zero
    2  1  type: 08 uint8, 09 int8, 0B int16, 0C int32, 0D float32, 0E float64; big-endian
    3  1  number of axes
    4     length of each axis, uint32, big-endian; then the values, the last axis fastest

Rules: the header's lengths are checked against the bound before anything is allocated, and the file must hold exactly that.
"""

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from edgefl.errors import DataError
from edgefl.examples import Examples
from edgefl.sources.arrays import MAX_VALUES, Array, examples_of, missing

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_PREFIX = {"train": "train", "test": "t10k"}
_CHUNK = 1 << 20


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class IdxSource:
    """Examples in a pair of idx files.

    Attributes:
        images: the inputs, or a directory with MNIST's four files.
        labels: the labels; None finds them by name (`images` in the name becomes `labels`).
        split: `train` or `test`; empty unless given, which is `train` for a directory.
    """

    images: Path
    labels: Path | None
    split: str = ""

    def load(self) -> Examples:
        """All examples. Raises DataError."""
        images, labels = self._files()
        x, y = read_idx(images), read_idx(labels)
        return examples_of(x, y, f"{images} with {labels.name}")

    def _files(self) -> tuple[Path, Path]:
        if self.images.is_dir():
            prefix = _PREFIX[self.split or "train"]
            images = _either(self.images / f"{prefix}-images-idx3-ubyte")
            return images, self.labels or _either(self.images / f"{prefix}-labels-idx1-ubyte")
        if self.split:
            raise DataError(f"a split needs a directory with MNIST's four files, and {self.images} is none")
        if self.labels:
            return self.images, self.labels
        name = self.images.name.replace("images", "labels").replace("idx3", "idx1")
        if name == self.images.name:
            raise DataError(f"no labels file for {self.images}", remedy="Name it: idx:IMAGES,LABELS")
        return self.images, _either(self.images.with_name(name.removesuffix(".gz")))


def _either(path: Path) -> Path:
    """The plain file or, if there is none, its gzip."""
    return path if path.exists() else path.with_name(path.name + ".gz")


def read_idx(path: Path) -> Array:
    """The array in an idx file.

    Raises:
        DataError: the file is missing, truncated, damaged, too large or no idx file.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return _read(file, path)
    except FileNotFoundError:
        raise missing(path) from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"data file {path} cannot be read", found=str(error), remedy="Copy or download the file again") from error


def _read(file: _Readable, path: Path) -> Array:
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _TYPES or not 1 <= head[3] <= 8:
        expected = "bytes 00 00, a type and 1 to 8 axes"
        raise DataError(f"{path} is no idx file", expected=expected, found=head.hex(" "), remedy="Check the file's format")
    lengths = file.read(4 * head[3])
    if len(lengths) < 4 * head[3]:
        raise DataError(f"{path} ends inside its header", remedy="Copy or download the file again")
    shape = tuple(int(n) for n in np.frombuffer(lengths, dtype=">u4"))
    if math.prod(shape) > MAX_VALUES:
        raise DataError(f"{path} is too large", expected=f"at most {MAX_VALUES} values", found=f"shape {shape}")
    dtype = np.dtype(_TYPES[head[2]])
    wanted = math.prod(shape) * dtype.itemsize
    body = bytearray()
    while len(body) <= wanted:
        chunk = file.read(min(_CHUNK, wanted + 1 - len(body)))
        if not chunk:
            break
        body += chunk
    if len(body) != wanted:
        found = f"{len(body)}" if len(body) < wanted else "more"
        raise DataError(
            f"{path} does not hold what its header says",
            expected=f"{wanted} bytes of values",
            found=found,
            remedy="Copy or download the file again",
        )
    return np.frombuffer(body, dtype=dtype).reshape(shape).astype(dtype.newbyteorder("="))
