"""Which complaints are worth a line in the log: a device that talks nonsense a thousand times a second must not fill the disk.

Rule: in a period the same text is admitted once, and `MOST` texts in all; the others are counted, and the count is told at the
beginning of the next period. Times are seconds of a monotonic clock.
"""

PERIOD = 60.0
MOST = 30


class Complaints:
    """Admits complaints. Owned by one thread."""

    def __init__(self) -> None:
        self._texts: set[str] = set()
        self._left_out = 0
        self._until = 0.0

    def admit(self, text: str, now: float) -> list[str]:
        """The lines to log because of this complaint; none if it has been heard lately."""
        lines = []
        if now >= self._until:
            if self._left_out:
                lines.append(f"{self._left_out} more complaints were left out")
            self._texts.clear()
            self._left_out, self._until = 0, now + PERIOD
        if text in self._texts or len(self._texts) >= MOST:
            self._left_out += 1
            return lines
        self._texts.add(text)
        return [*lines, text]
