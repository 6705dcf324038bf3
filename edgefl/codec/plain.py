"""An update without context: format version 1, described byte by byte in docs/update-format.md.

Rules: no length in the file is trusted before it is compared with what the receiver expects; there is exactly one valid file
for each content but for the divisor (padding is zero, nothing follows); what is read is finite and bounded, or an UpdateError.
"""

import struct

import numpy as np

from edgefl.codec.bits import BitReader, pack
from edgefl.codec.fixed import code_pieces, packed_length
from edgefl.codec.positions import decode_positions, encode_positions
from edgefl.codec.sparsify import Sparse
from edgefl.codec.values import Quantised, check_scale, dequantise
from edgefl.errors import UpdateError
from edgefl.layout import Index

MAGIC = b"EFU"
VERSION = 1
_HEADER = struct.Struct("<3sBBIIffI")
HEADER_LENGTH = _HEADER.size
"""25 bytes: magic, version, bits, size, count, low, high, Golomb divisor."""


def write_plain(positions: Index, quantised: Quantised, size: int) -> bytes:
    """The file of version 1 of these positions, strictly increasing and below `size`, and their values."""
    divisor, coded = encode_positions(positions, size)
    header = _HEADER.pack(MAGIC, VERSION, quantised.bits, size, len(positions), quantised.low, quantised.high, divisor)
    return header + pack(code_pieces(quantised.codes, quantised.bits)) + coded


def read_plain(data: bytes, expected_size: int) -> Sparse:
    """The update of `expected_size` coordinates in these bytes, which begin with magic and version.

    Raises:
        UpdateError: bytes that are no such file.
    """
    if len(data) <= HEADER_LENGTH:
        raise UpdateError("update is truncated", expected=f"more than {HEADER_LENGTH} bytes", found=str(len(data)))
    _, _, bits, size, count, low, high, divisor = _HEADER.unpack_from(data)
    if size != expected_size:
        raise UpdateError("update of another model", expected=f"{expected_size} coordinates", found=str(size))
    if not 1 <= count <= size:
        raise UpdateError("update header out of range", found=f"{count} of {size} coordinates")
    check_scale(bits, low, high)
    values_end = HEADER_LENGTH + packed_length(count, bits)
    if len(data) < values_end:
        raise UpdateError("update ends inside its values", expected=f"{values_end} bytes or more", found=f"{len(data)}")
    buffer = np.frombuffer(data, dtype=np.uint8)
    positions = decode_positions(buffer[values_end:], divisor, count, size)
    reader = BitReader(buffer[HEADER_LENGTH:values_end])
    codes = reader.codes(count, bits)
    reader.end()
    return Sparse(positions, dequantise(codes, low, high, bits), size)
