"""The one queue of outgoing messages: bounded in bytes, with a small window handed over at a time.

Model: a message is *waiting*, then *handed* (the network layer has it under an identifier), then gone when acknowledged. If the
connection dies, what was handed goes back to the front of the waiting, in its old order; so the broker may see a message twice,
but never a later one before an earlier one of the same connection.

Why not paho's queue: it counts messages instead of bytes, has no bound by default, and on reconnection sends everything at once
instead of a window.
"""

from collections import deque
from collections.abc import Callable

from edgefl.errors import LinkError
from edgefl.link.contract import Message, check_publish


class Outgoing:
    """Messages on their way out. `size` is their payload bytes, waiting and handed together."""

    def __init__(self, window: int, budget: int) -> None:
        """Bound it: `window` messages handed at a time, `budget` bytes in all."""
        self.size = 0
        self._window = window
        self._budget = budget
        self._waiting: deque[Message] = deque()
        self._handed: dict[int, Message] = {}

    @property
    def empty(self) -> bool:
        """Whether everything has been acknowledged."""
        return not self._waiting and not self._handed

    def put(self, message: Message) -> None:
        """Append a message.

        Raises:
            LinkError: the message is impossible, or the budget is used up.
        """
        check_publish(message.topic, message.payload, message.qos)
        if self.size + len(message.payload) > self._budget:
            raise LinkError(
                f"no room for a message to {message.topic}",
                expected=f"at most {self._budget} bytes waiting for the broker",
                found=f"{self.size} and {len(message.payload)} more",
                remedy="Wait until the link has sent some, or check the connection to the broker",
            )
        self._waiting.append(message)
        self.size += len(message.payload)

    def hand_over(self, send: Callable[[Message], int | None]) -> int:
        """Give waiting messages to `send` while the window has room; how many.

        `send` returns the identifier under which it will be acknowledged, or None when the connection is gone.
        """
        count = 0
        while self._waiting and len(self._handed) < self._window:
            identifier = send(self._waiting[0])
            if identifier is None:
                break
            self._handed[identifier] = self._waiting.popleft()
            count += 1
        return count

    def acknowledge(self, identifier: int) -> None:
        """The broker has it (QoS 1), or the network has it (QoS 0). Unknown identifiers are ignored."""
        message = self._handed.pop(identifier, None)
        if message is not None:
            self.size -= len(message.payload)

    def take_back(self) -> None:
        """The connection is gone: handed messages wait again, and QoS 0 messages are dropped."""
        everything = (*self._handed.values(), *self._waiting)
        self._handed.clear()
        self._waiting = deque(message for message in everything if message.qos > 0)
        self.size = sum(len(message.payload) for message in self._waiting)
