"""What long-running commands share: ending on a signal, and a log on standard error."""

import logging
import os
import signal
from collections.abc import Callable
from types import FrameType


def stop_on_signals() -> Callable[[], bool]:
    """A question that is answered with yes after SIGTERM or SIGINT.

    The first signal asks for a clean end; from the second on the default action ends the process at once.
    """
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signal module's signature
        asked.append(number)
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask)
    return lambda: bool(asked)


def log_to_stderr() -> None:
    """One line per record; EDGEFL_LOG sets the level (debug, info, warning, error)."""
    level = os.environ.get("EDGEFL_LOG", "info").upper()
    logging.basicConfig(level=level, format="%(asctime)s.%(msecs)03d %(levelname)s %(message)s", datefmt="%H:%M:%S")
