"""Clocks on a string: for whatever takes its time as arguments.

No test in here. A test module imports it by its name (`pythonpath` in pyproject.toml).
"""

import time

START = 1_700_000_000.0


class Clock:
    """Time that passes when a test says so; `wall` and `monotonic` go together."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        """Seconds since the test began."""
        return self.now

    def wall(self):
        """Seconds since 1970."""
        return START + self.now


class Today(Clock):
    """The same, from today on: for what looks at certificates and lifetimes."""

    def __init__(self):
        """It is today."""
        super().__init__()
        self.begin = time.time()

    def wall(self):
        """Seconds since 1970."""
        return self.begin + self.now
