"""Putting updates together from their parts, within a bound of memory, whatever is sent.

Model: an update of more than one packet arrives as numbered parts that share its SHA-256. Parts may come twice, in any order,
or never; a device that is cut off sends all of them again. Incomplete updates are kept in memory only: nothing has been promised
about them.

Rules: a device has one incomplete update at a time, its newest; all together never exceed the budget, the longest waiting goes
first; what is handed out matches its SHA-256.
"""

import hashlib

from edgefl.errors import UpdateError
from edgefl.wire.messages import PART_SIZE, UpdatePart

BUDGET = 64 * 1024 * 1024


class Inbox:
    """Incomplete updates by device. Owned by the server's one thread.

    Args:
        budget: bytes of parts held at the most.
    """

    def __init__(self, budget: int = BUDGET) -> None:
        self._budget = budget
        self._held = 0
        self._incomplete: dict[str, dict[int, UpdatePart]] = {}

    def add(self, device: str, part: UpdatePart) -> bytes | None:
        """Add a part; the whole encoded update when it was the last one missing.

        Raises:
            UpdateError: the part contradicts itself, or the whole does not match its SHA-256.
        """
        if part.part >= part.parts or part.parts * PART_SIZE > self._budget:
            raise UpdateError(
                f"part {part.part} of {part.parts} of an update from {device} is impossible",
                expected=f"at most {self._budget // PART_SIZE} parts of {PART_SIZE} bytes",
            )
        parts = self._incomplete.pop(device, {})
        if parts and next(iter(parts.values())).sha256 != part.sha256:
            self._held -= _size(parts)
            parts = {}
        if part.part not in parts:
            parts[part.part] = part
            self._held += len(part.data)
        if len(parts) < part.parts:
            self._incomplete[device] = parts  # at the end: the longest waiting is first
            self._shrink()
            return None
        self._held -= _size(parts)
        data = b"".join(parts[i].data for i in sorted(parts))
        if hashlib.sha256(data).digest() != part.sha256:
            raise UpdateError(f"an update from {device} is damaged", expected=f"SHA-256 {part.sha256.hex()[:16]}")
        return data

    def _shrink(self) -> None:
        while self._held > self._budget:
            oldest = next(iter(self._incomplete))
            self._held -= _size(self._incomplete.pop(oldest))


def _size(parts: dict[int, UpdatePart]) -> int:
    return sum(len(part.data) for part in parts.values())
