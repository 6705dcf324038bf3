"""The outbox: an encoded update and the residual that belongs to it, in one file that is replaced as a whole.

Why one file: the update says what was sent, the residual what was not; together they are the whole delta (sent + residual =
delta + old residual). Were they two files, a power cut between the two would count a part of the delta twice or never.

Format: magic `EFO1`, header length (uint32, little endian), header (msgpack of `OutboxEntry`), encoded update, residual
(float32, little endian), SHA-256 of all that precedes.

Life: the trainer writes `outbox`; the agent sends its update until the receipt comes; then `outbox` is renamed to `settled`,
whose residual the next training starts from.
"""

import hashlib
import struct
from pathlib import Path
from typing import Annotated

import msgspec

from edgefl.errors import StoreError
from edgefl.store.atomic import write_file
from edgefl.wire.messages import Id, Number, Sha256

_MAGIC = b"EFO1"
_HEAD = struct.Struct("<4sI")
_MAX_HEADER = 4096


class OutboxEntry(msgspec.Struct, frozen=True, array_like=True):
    """What an outbox file holds.

    Attributes:
        version, variant, round: what the update was trained from.
        layout: digest of the layout of the residual.
        samples, loss_before, loss_after: as in the wire's `UpdatePart`.
        sha256: of the encoded update.
        update_length, residual_length: bytes.
    """

    version: Number
    variant: Id
    round: Number
    layout: Id
    samples: Number
    loss_before: float
    loss_after: float
    sha256: Sha256
    update_length: Annotated[int, msgspec.Meta(ge=1)]
    residual_length: Annotated[int, msgspec.Meta(ge=0)]


def write_outbox(path: Path, entry: OutboxEntry, update: bytes, residual: bytes) -> None:
    """Replace the outbox atomically.

    Raises:
        StoreError: it could not be written; the old one is still there.
    """
    header = msgspec.msgpack.encode(entry)
    body = _HEAD.pack(_MAGIC, len(header)) + header + update + residual
    write_file(path, body + hashlib.sha256(body).digest())


def read_entry(path: Path) -> OutboxEntry | None:
    """What the file holds, or None if there is no file or it is damaged (its digest does not match)."""
    data = _checked(path)
    return None if data is None else _entry(data)[0]


def read_update(path: Path) -> bytes:
    """The encoded update.

    Raises:
        StoreError: the file is missing or damaged.
    """
    data = _checked(path)
    if data is None:
        raise StoreError(f"the outbox {path} is missing or damaged", remedy="The round will be trained again")
    entry, start = _entry(data)
    return data[start : start + entry.update_length]


def read_residual(path: Path) -> tuple[OutboxEntry, bytes] | None:
    """The residual and what it belongs to, or None if there is no file or it is damaged."""
    data = _checked(path)
    if data is None:
        return None
    entry, start = _entry(data)
    start += entry.update_length
    return entry, data[start : start + entry.residual_length]


def _checked(path: Path) -> bytes | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"cannot read {path}", found=str(error), remedy="Check the disk") from error
    body, digest = data[:-32], data[-32:]
    return body if len(data) > _HEAD.size + 32 and hashlib.sha256(body).digest() == digest else None


def _entry(data: bytes) -> tuple[OutboxEntry, int]:
    magic, length = _HEAD.unpack_from(data)
    try:
        if magic != _MAGIC or length > _MAX_HEADER:
            raise StoreError("an outbox file of another format", remedy="Remove it; the round will be trained again")
        return msgspec.msgpack.decode(data[_HEAD.size : _HEAD.size + length], type=OutboxEntry), _HEAD.size + length
    except msgspec.MsgspecError as error:
        raise StoreError("an outbox file of another format", found=str(error), remedy="Remove it") from error
