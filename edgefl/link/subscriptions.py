"""What the owner of a link wants to hear, kept across connections, and which request of this connection asked for it.

Model: a filter is *wanted* from `want` until `forget`, whatever happens to the connection; each connection *asks* for all of them
anew, in requests that the broker answers by identifier and position.
"""

from collections.abc import Callable

from edgefl.link.contract import Refused, check_filter

MOST = 8
"""Filters in one request: AWS IoT Core's limit."""

Ask = Callable[[list[tuple[str, int]]], int | None]
"""Sends a request for filters with their QoS; its identifier, or None when the connection is gone."""


class Subscriptions:
    """The filters of one link."""

    def __init__(self) -> None:
        self._wanted: dict[str, int] = {}
        self._asked: dict[int, tuple[str, ...]] = {}

    def want(self, topic_filter: str, qos: int) -> None:
        """Remember a filter. Raises LinkError when it is malformed."""
        check_filter(topic_filter)
        self._wanted[topic_filter] = qos

    def forget(self, topic_filter: str) -> bool:
        """No longer want it; whether it was wanted."""
        return self._wanted.pop(topic_filter, None) is not None

    def ask(self, send: Ask, *filters: str) -> None:
        """Ask for these filters, for all of them if none is named."""
        pairs = [(name, self._wanted[name]) for name in filters or self._wanted]
        for start in range(0, len(pairs), MOST):
            some = pairs[start : start + MOST]
            identifier = send(some)
            if identifier is not None:
                self._asked[identifier] = tuple(name for name, _ in some)

    def denied(self, identifier: int, position: int) -> list[Refused]:
        """The filter at this position of a request, as an event; nothing for an unknown request."""
        return [Refused(name) for name in self._asked.get(identifier, ())[position : position + 1]]

    def lost(self) -> None:
        """The connection is gone, and the answers to its requests with it."""
        self._asked.clear()
