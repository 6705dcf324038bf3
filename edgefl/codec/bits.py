"""Unsigned integers of a fixed number of bits, packed without gaps, most significant bit first, zero padding at the end."""

import numpy as np
import numpy.typing as npt

from edgefl.errors import UpdateError

Codes = npt.NDArray[np.integer]
Buffer = npt.NDArray[np.uint8]

MAX_WIDTH = 32


def packed_length(count: int, width: int) -> int:
    """Bytes that `count` codes of `width` bits take."""
    return (count * width + 7) // 8


def pack(codes: Codes, width: int) -> bytes:
    """Pack non-negative codes below `2**width`, with `width` in 0 to 32; width 0 gives no bytes."""
    if width == 0:
        return b""
    container = 8 if width <= 8 else 32
    columns = codes.astype(f">u{container // 8}").view(np.uint8).reshape(-1, container // 8)
    return np.packbits(np.unpackbits(columns, axis=1)[:, container - width :]).tobytes()


def unpack(data: Buffer, count: int, width: int) -> npt.NDArray[np.int64]:
    """The codes in exactly `packed_length(count, width)` bytes, as int64.

    Raises:
        UpdateError: another length, or padding that is not zero.
    """
    if len(data) != packed_length(count, width):
        raise UpdateError(
            "packed codes have a wrong length", expected=f"{packed_length(count, width)} bytes", found=f"{len(data)} bytes"
        )
    bits = np.unpackbits(data)
    if bits[count * width :].any():
        raise UpdateError("padding bits of packed codes are not zero")
    codes = np.zeros(count, dtype=np.int64)
    for column in bits[: count * width].reshape(count, width).T:
        codes <<= 1
        codes |= column
    return codes


def pack_flags(flags: npt.NDArray[np.bool_]) -> bytes:
    """One bit per flag."""
    return np.packbits(flags).tobytes()
