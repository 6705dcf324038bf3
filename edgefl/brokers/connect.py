"""The first packet of an MQTT connection, read before anybody acts on it (MQTT 3.1.1, section 3.1).

Only what decides about admission is taken out: protocol level, client id and the will's topic. Pure: bytes in, values out.
"""

from dataclasses import dataclass

from edgefl.errors import MessageError
from edgefl.wire.messages import MAX_PACKET

MAX_CONNECT = MAX_PACKET
"""Bytes of a CONNECT packet after its fixed header; a will is at most one message."""
LEVEL_3_1_1 = 4
LEVEL_5 = 5
REFUSED_LEVEL = b"\x20\x02\x00\x01"
"""CONNACK of 3.1.1: unacceptable protocol version."""
REFUSED_LEVEL_5 = b"\x20\x03\x00\x84\x00"
"""CONNACK of 5.0: unsupported protocol version. Without it a client of version 5 waits for ever."""
REFUSED_ID = b"\x20\x02\x00\x02"
REFUSED = b"\x20\x02\x00\x05"
"""CONNACK of 3.1.1: identifier rejected, and not authorised."""


@dataclass(frozen=True, slots=True)
class Connect:
    """What a client wants to be: protocol level, client id, and the topic of its will or None."""

    level: int
    client: str
    will: str | None


def parse_connect(body: bytes) -> Connect:
    """Read the variable header and payload of a CONNECT packet, of 3.1.1; of other levels only the level.

    Raises:
        MessageError: it ends too early, or holds text that is no UTF-8.
    """
    try:
        protocol, rest = _field(body)
        level, flags, rest = rest[0], rest[1], rest[4:]
        if protocol != b"MQTT" or level != LEVEL_3_1_1:
            return Connect(level if protocol == b"MQTT" else 0, "", None)
        client, rest = _field(rest)
        will = _field(rest)[0].decode() if flags & 0x04 else None
        return Connect(level, client.decode(), will)
    except (IndexError, UnicodeDecodeError):
        raise MessageError("a CONNECT packet that does not decode") from None


def _field(data: bytes) -> tuple[bytes, bytes]:
    """A field with its two-byte length, and what follows it."""
    length = data[0] << 8 | data[1]
    if len(data) < 2 + length:
        raise IndexError(length)
    return data[2 : 2 + length], data[2 + length :]
