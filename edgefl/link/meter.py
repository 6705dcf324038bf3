"""What has gone through a link, counted as it goes: the `Traffic` of the contract, kept up to date."""

from collections.abc import Sequence
from dataclasses import replace

from edgefl.link.contract import Arrived, Message, Traffic


class Meter:
    """The counters of one link, across its connections: `traffic` is what they show now."""

    def __init__(self) -> None:
        self.traffic = Traffic()

    def attempted(self) -> None:
        """An attempt to connect was begun."""
        self.traffic = replace(self.traffic, attempts=self.traffic.attempts + 1)

    def sent(self, message: Message) -> None:
        """A message was handed to the network."""
        before = self.traffic
        self.traffic = replace(before, sent=before.sent + 1, sent_bytes=before.sent_bytes + len(message.payload))

    def received(self, messages: Sequence[Arrived], dropped: int = 0) -> None:
        """These messages arrived, and so many others that were of no use."""
        before = self.traffic
        self.traffic = replace(
            before,
            received=before.received + len(messages),
            received_bytes=before.received_bytes + sum(len(message.payload) for message in messages),
            dropped=before.dropped + dropped,
        )
