"""What long-running commands share: ending on a signal, and a log on standard error."""

import json
import logging
import os
import signal
import time
from collections.abc import Callable
from types import FrameType

from edgefl.cli.text import printable
from edgefl.errors import ConfigError

LEVELS = ("debug", "info", "warning", "error")
FORMAT = "EDGEFL_LOG_FORMAT"
FORMATS = ("text", "json")
KNOWN = ("device", "model", "version", "round")
"""What a record may say in fields of their own (`extra` of the logging calls)."""


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


class _JsonLine(logging.Formatter):
    """A record is one JSON object in one line of visible ASCII characters, whatever a peer has put into it.

    Fields: `time` (RFC 3339, UTC), `level`, `logger`, `message`; `device`, `model`, `version` and `round` where they are known;
    `traceback` after a bug.
    """

    device = ""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields: dict[str, object] = {
            "time": f"{moment}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _sound(record.getMessage()),
        }
        for name in KNOWN:
            value = getattr(record, name, self.device if name == "device" else None)
            if isinstance(value, int) or (isinstance(value, str) and value):
                fields[name] = _sound(value) if isinstance(value, str) else value
        if record.exc_info:
            fields["traceback"] = _sound(self.formatException(record.exc_info))
        return json.dumps(fields).replace("\x7f", "\\u007f")  # the one control character that JSON leaves alone


def _sound(text: str) -> str:
    """The same text with halves of characters, which not every reader of JSON takes, spelt out."""
    return text.encode("utf-8", "backslashreplace").decode()


def log_to_stderr() -> None:
    """One line per record; EDGEFL_LOG sets the level, EDGEFL_LOG_FORMAT whether the lines are text or JSON.

    What native libraries print, and tracebacks that EDGEFL_DEBUG asks for, stay text.

    Raises:
        ConfigError: EDGEFL_LOG is no level, or EDGEFL_LOG_FORMAT no format.
    """
    level = _chosen("EDGEFL_LOG", "level", LEVELS, "info")
    as_json = _chosen(FORMAT, "format", FORMATS, "text") == "json"
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonLine() if as_json else _OneLine("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.captureWarnings(as_json)


def _chosen(variable: str, what: str, choices: tuple[str, ...], default: str) -> str:
    value = os.environ.get(variable, default).lower()
    if value not in choices:
        raise ConfigError(
            f"{variable} is no {what}", expected=", ".join(choices), found=repr(value), remedy="Correct or unset it"
        )
    return value


def log_as(device: str) -> None:
    """From now on every line of a JSON log names this device."""
    for formatter in _json_formatters():
        formatter.device = device


def complain(text: str) -> bool:
    """Log what ends a command, where its log is JSON; whether it is."""
    as_json = bool(_json_formatters())
    if as_json:
        logging.getLogger("edgefl").error("%s", text)
    return as_json


def _json_formatters() -> list[_JsonLine]:
    return [handler.formatter for handler in logging.getLogger().handlers if isinstance(handler.formatter, _JsonLine)]
