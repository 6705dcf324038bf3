"""How many bytes a device's messages are: the real messages, encoded as the live system encodes them, and what MQTT adds.

Model: up go the parts of an update (`wire.rounds.UpdatePart`); down come the signed round order and the blocks of the file that
the device fetches. Each is one PUBLISH of MQTT 3.1.1 with QoS 1 (section 3.3): a byte, the remaining length in one to four bytes,
the topic with two bytes of length, two bytes of packet id, the payload. Not counted are acknowledgements, requests for blocks,
receipts, orders that reach devices which do not take part, TLS and TCP; nor that one multicast block may serve many: these
are the bytes that each device pays for.
"""

import hashlib
from functools import lru_cache

from edgefl.simulate.jobs import Played
from edgefl.wire import topics
from edgefl.wire.blocks import block_length
from edgefl.wire.files import Block, Difference, FileRef
from edgefl.wire.messages import Signed, encode
from edgefl.wire.rounds import PART_SIZE, RoundOrder, Task, UpdatePart

VERSION = 1
_KEY_HINT = "0" * 16
_SIGNATURE = bytes(64)


def publish_length(topic: str, payload: int) -> int:
    """Bytes of a PUBLISH packet with QoS 1.

    Args:
        topic: that it is published to.
        payload: bytes of the message.
    """
    remaining = 2 + len(topic.encode()) + 2 + payload
    digits = 1
    while remaining >> (7 * digits):
        digits += 1
    return 1 + digits + remaining


def update_length(device: str, model: str, variant: str, number: int, played: Played) -> int:
    """Bytes that a device sends for its update.

    Args:
        device: its name.
        model: its name in messages.
        variant: likewise.
        number: of the round it trained for.
        played: the update.
    """
    data, topic = played.data, topics.update(device)
    sha256 = hashlib.sha256(data).digest()
    starts = range(0, len(data), PART_SIZE)
    total = 0
    for part, start in enumerate(starts):
        piece = data[start : start + PART_SIZE]
        losses = (played.loss_before, played.loss_after)
        head = (model, VERSION, variant, number, played.samples, *losses, sha256, part, len(starts))
        total += publish_length(topic, len(encode(UpdatePart(*head, piece, played.before))))
    return total


def order_length(
    model: str, variant: str, number: int, weights: FileRef, task: Task | None, differences: tuple[Difference, ...] = ()
) -> int:
    """Bytes of a signed round order as a device receives it."""
    order = RoundOrder(model, VERSION, variant, number, weights, task, 1 << 31, differences)
    signed = Signed("round", encode(order), _KEY_HINT, _SIGNATURE)
    return publish_length(topics.round_order(model, variant), len(encode(signed)))


def file_length(ref: FileRef) -> int:
    """Bytes of all blocks of a file as a device receives them."""
    topic, last = topics.block(ref.sha256.hex()), len(ref.blocks) - 1
    whole = sum(_block_length(topic, index, block_length(ref, 0)) for index in range(last))
    return whole + _block_length(topic, last, block_length(ref, last))


@lru_cache(4096)
def _block_length(topic: str, index: int, length: int) -> int:
    return publish_length(topic, len(encode(Block(bytes(16), index, bytes(length)))))
