"""What waits in a link: the next attempt to connect, and messages on their way out."""

import random

from edgefl.link.backoff import Backoff
from edgefl.link.contract import Message
from edgefl.link.outgoing import Outgoing


def test_backoff_grows_with_jitter_and_forgets_after_success() -> None:
    """Pauses lie below a limit that doubles from 0.5 to 60 s; only a connection that lasted starts over."""
    backoff = Backoff(random.Random(0))
    pauses = []
    for attempt in range(12):
        backoff.failed(100.0)
        pauses.append(backoff.due - 100.0)
        assert 0.0 <= pauses[-1] <= min(60.0, 0.5 * 2**attempt)
    assert max(pauses) > 20.0
    backoff.failed(100.0, lasted=1.0)
    assert Backoff(random.Random(0)).due == 0.0
    backoff.failed(100.0, lasted=11.0)
    assert backoff.due - 100.0 <= 0.5


def test_taking_back_keeps_order_and_drops_qos_0() -> None:
    """After a lost connection, handed messages come first again in their old order; QoS 0 messages are gone; the size agrees."""
    queue = Outgoing(window=3, budget=1000)
    for number in range(6):
        queue.put(Message("t", b"%d" % number, qos=0 if number in (1, 4) else 1))
    handed: list[bytes] = []

    def send(message: Message) -> int:
        handed.append(message.payload)
        return len(handed)

    queue.hand_over(send)
    assert handed == [b"0", b"1", b"2"]
    queue.acknowledge(1)
    queue.acknowledge(99)
    queue.take_back()
    assert queue.size == 3
    queue.hand_over(send)
    assert handed[3:] == [b"2", b"3", b"5"]
