"""What long-running commands share: ending on a signal, and a log on standard error."""

import logging
import os
import signal
from collections.abc import Callable
from types import FrameType

from edgefl.cli.text import printable
from edgefl.errors import ConfigError

LEVELS = ("debug", "info", "warning", "error")


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


class _OneLine(logging.Formatter):
    """A record is one line, whatever a device has put into it; only a traceback has more."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the logging module's name
        return printable(super().formatMessage(record))


def log_to_stderr() -> None:
    """One line per record; EDGEFL_LOG sets the level.

    Raises:
        ConfigError: EDGEFL_LOG is no level.
    """
    level = os.environ.get("EDGEFL_LOG", "info").lower()
    if level not in LEVELS:
        raise ConfigError("EDGEFL_LOG is no level", expected=", ".join(LEVELS), found=repr(level), remedy="Correct or unset it")
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=level.upper(), handlers=[handler])
