"""A device of the toy fleet, which does what a test tells it.

No test in here. A test module imports it by its name (`pythonpath` in pyproject.toml).
"""

from contextlib import suppress

import msgspec

from edgefl.identity.signing import ROUND, verify
from edgefl.link.contract import Arrived
from edgefl.link.memory import MemoryLink
from edgefl.wire import topics
from edgefl.wire.messages import Signed, decode, encode
from edgefl.wire.rounds import PART_SIZE, Receipt, RoundOrder
from toyupdates import MODEL, head_of, update_of


class ToyDevice:
    """A device that does what a test tells it."""

    def __init__(self, fleet, name):
        """Connect and subscribe."""
        self.fleet, self.name = fleet, name
        self.variant, self.layout, _ = fleet.variants[fleet.profiles.get(name, "big")]
        self.link = MemoryLink(fleet.broker, name)
        self.link.subscribe(topics.receipt(name))
        self.link.subscribe(topics.round_order(MODEL, self.variant))
        self.receipts, self.orders = [], []
        self.hear()

    def hear(self):
        """Take what has arrived; the last receipt, if any ever came."""
        for event in self.link.poll(0.0):
            if isinstance(event, Arrived) and event.topic == topics.receipt(self.name):
                self.receipts.append(decode(event.payload, Receipt))
            elif isinstance(event, Arrived):
                self.orders.append(self._order(event.payload))
        return self.receipts[-1] if self.receipts else None

    def _order(self, payload):
        if not payload:
            return None
        return decode(verify(decode(payload, Signed), ROUND, self.fleet.online.public_key), RoundOrder)

    def say(self, kind, payload):
        """Publish below the device's own topics."""
        self.link.publish(f"efl/v1/up/{self.name}/{kind}", payload if isinstance(payload, bytes) else encode(payload))
        with suppress(IndexError):
            self.hear()

    def data(self, number, **options):
        """Its encoded update for a round."""
        return update_of(self.name, number, self.layout.size, **options)

    def send(self, number, *, data=None, variant=None, **head):
        """Send the update of a round."""
        data = self.data(number) if data is None else data
        whole = head_of(self.name, number, data, variant=variant or self.variant, **head)
        cuts = range(0, max(1, len(data)), PART_SIZE)
        for part, start in enumerate(cuts):
            piece = msgspec.structs.replace(whole, part=part, parts=len(cuts), data=data[start : start + PART_SIZE])
            self.say("update", piece)
