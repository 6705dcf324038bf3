"""What all messages have in common: the types of their fields, their bytes, and the envelope of what is signed.

The messages stand in `edgefl.wire.files`, `releases`, `rounds`, `presence` and `enrolment`, as msgspec structs in msgpack arrays:
small, typed, bounded, and open at the end.

Rules:

* A field is only ever appended, with a default; never retyped, reused or removed. An old decoder skips what it does not know,
  a new decoder fills in what an old sender did not say.
* Every length from the network has a bound in its type, so that nothing is allocated for a message that lies.
* What has consequences (manifests, round orders) travels inside `Signed`: the bytes that were signed, and the signature.
"""

from typing import Annotated, TypeVar

import msgspec

from edgefl.errors import MessageError

MAX_PACKET = 128 * 1024
"""Bytes of one MQTT payload; AWS IoT Core's limit, and far below Mosquitto's."""

Id = Annotated[str, msgspec.Meta(min_length=1, max_length=40)]
Text = Annotated[str, msgspec.Meta(max_length=500)]
Sha256 = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Number = Annotated[int, msgspec.Meta(ge=0, le=(1 << 53))]
Version = Annotated[int, msgspec.Meta(ge=1, le=(1 << 53))]


class Signed(msgspec.Struct, frozen=True, array_like=True):
    """Signed bytes. `purpose` is part of what was signed, so that no message can be replayed as one of another kind."""

    purpose: Annotated[str, msgspec.Meta(max_length=20)]
    payload: Annotated[bytes, msgspec.Meta(max_length=MAX_PACKET)]
    key: Annotated[str, msgspec.Meta(max_length=64)]
    signature: Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]


M = TypeVar("M", bound=msgspec.Struct)
_ENCODER = msgspec.msgpack.Encoder()
_DECODERS: dict[type[msgspec.Struct], msgspec.msgpack.Decoder[msgspec.Struct]] = {}


def encode(message: msgspec.Struct) -> bytes:
    """The message's bytes.

    Raises:
        MessageError: they would not fit one packet.
    """
    data = _ENCODER.encode(message)
    if len(data) > MAX_PACKET:
        raise MessageError(
            f"{type(message).__name__} is too large for one packet", expected=f"at most {MAX_PACKET} bytes", found=f"{len(data)}"
        )
    return data


def decode(data: bytes, kind: type[M]) -> M:
    """The message in these bytes.

    Raises:
        MessageError: too long, truncated, of another shape, or out of range; the text names the field.
    """
    if len(data) > MAX_PACKET:
        raise MessageError(f"{kind.__name__} message is too large", expected=f"at most {MAX_PACKET} bytes", found=f"{len(data)}")
    decoder = _DECODERS.setdefault(kind, msgspec.msgpack.Decoder(kind))
    try:
        message = decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:  # the last: nested 100,000 deep
        raise MessageError(f"{kind.__name__} message does not decode", found=str(error)) from None
    if not isinstance(message, kind):
        raise MessageError(f"{kind.__name__} message does not decode")
    return message
