"""Putting updates together from their parts, within a bound of memory, whatever is sent.

Model: an update of more than one packet arrives as numbered parts that share its SHA-256. Parts may come twice, in any order,
or never; a device that is cut off sends all of them again. Incomplete updates are kept in memory only: nothing has been promised
about them.

Rules: a device has one incomplete update at a time, its newest; all together never exceed the budget, and the device that holds
most of it loses its own, so that one device cannot push out the others; what is handed out matches its SHA-256.
"""

import hashlib
from dataclasses import dataclass, field

from edgefl.errors import UpdateError
from edgefl.wire.rounds import PART_SIZE, UpdatePart

BUDGET = 64 * 1024 * 1024
OVERHEAD = 256
"""Bytes that a part costs beside its content."""


@dataclass(slots=True)
class _Incomplete:
    """The parts of one update so far, by number, and what they cost."""

    sha256: bytes
    parts: int
    data: dict[int, bytes] = field(default_factory=dict)
    cost: int = 0


class Inbox:
    """Incomplete updates by device. Owned by the server's one thread.

    Args:
        budget: bytes of parts held at the most.
    """

    def __init__(self, budget: int = BUDGET) -> None:
        self._budget = budget
        self._incomplete: dict[str, _Incomplete] = {}

    @property
    def held(self) -> int:
        """Bytes in use, at most the budget."""
        return sum(incomplete.cost for incomplete in self._incomplete.values())

    def add(self, device: str, part: UpdatePart) -> bytes | None:
        """Add a part; the whole encoded update when it was the last one missing.

        Raises:
            UpdateError: the part contradicts itself, or the whole does not match its SHA-256.
        """
        if part.part >= part.parts or part.parts * (PART_SIZE + OVERHEAD) > self._budget:
            raise UpdateError(
                f"part {part.part} of {part.parts} of an update from {device} is impossible",
                expected=f"at most {self._budget // (PART_SIZE + OVERHEAD)} parts of {PART_SIZE} bytes",
            )
        held = self._incomplete.get(device)
        if held is None or (held.sha256, held.parts) != (part.sha256, part.parts):
            held = self._incomplete[device] = _Incomplete(part.sha256, part.parts)
        if part.part not in held.data:
            held.data[part.part] = part.data
            held.cost += len(part.data) + OVERHEAD
        if len(held.data) < held.parts:
            self._shrink()
            return None
        del self._incomplete[device]
        data = b"".join(held.data[number] for number in range(held.parts))
        if hashlib.sha256(data).digest() != part.sha256:
            raise UpdateError(f"an update from {device} is damaged", expected=f"SHA-256 {part.sha256.hex()[:16]}")
        return data

    def _shrink(self) -> None:
        while self.held > self._budget:
            del self._incomplete[max(self._incomplete, key=lambda device: self._incomplete[device].cost)]
