"""The log of long-running commands as JSON lines: fields, hostile text, and that every line parses."""

import io
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefl.cli import process
from edgefl.errors import ConfigError
from edgefl.server.founding import create_fleet
from edgefl.server.provision import provision

Read = Callable[[], list[dict[str, object]]]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[Read]:
    """The root logger as a command has it, with EDGEFL_LOG_FORMAT=json; gives the lines that were logged."""
    monkeypatch.setenv(process.FORMAT, "json")
    root, stream = logging.getLogger(), io.StringIO()
    before, level = root.handlers[:], root.level
    root.handlers[:] = []
    monkeypatch.setattr(sys, "stderr", stream)
    process.log_to_stderr()

    def lines() -> list[dict[str, object]]:
        text = stream.getvalue()
        stream.truncate(0)
        stream.seek(0)
        assert text.isascii()
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)
        return [json.loads(line) for line in text.splitlines()]

    yield lines
    logging.captureWarnings(capture=False)
    root.handlers[:] = before
    root.setLevel(level)


def test_a_record_is_an_object_with_what_is_known(read: Read) -> None:
    """Time in UTC, level, logger, message; model, version and round from the call, the device from the start."""
    log = logging.getLogger("edgefl.device")
    log.info("round %d training", 3, extra={"model": "m", "version": 2, "round": 3})
    process.log_as("cam-01")
    log.warning("no connection", extra={"model": ""})
    log.error("an update", extra={"device": "cam-02"})
    first, second, third = read()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(first.pop("time")))
    assert first == {
        "level": "info",
        "logger": "edgefl.device",
        "message": "round 3 training",
        "model": "m",
        "version": 2,
        "round": 3,
    }
    assert (second["device"], "model" in second) == ("cam-01", False)
    assert third["device"] == "cam-02"


HOSTILE = ["\x1b[2J\r\nroot@board:~#", 'x", "level": "error', "\x7f\x9b\u2028\u202e", "\x00", "{%s}" * 3, "💥"]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_one_line_and_comes_back_as_it_was(read: Read, text: str) -> None:
    """Control characters, quotes and line ends of a peer are escaped, not executed."""
    logging.getLogger("edgefl").warning("%s", text, extra={"device": text})
    (line,) = read()
    assert line["level"] == "warning"
    assert line["message"] == line["device"] == text.encode("utf-8", "backslashreplace").decode()


@given(st.text(st.characters(codec=None), max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_text_is_one_visible_line(text: str) -> None:
    """Whatever is logged, the line parses and holds visible ASCII characters alone."""
    formatter = process._JsonLine()
    line = formatter.format(logging.LogRecord("n", logging.INFO, "f", 1, "%s", (text,), None))
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["message"].encode("utf-8", "backslashreplace") == text.encode("utf-8", "backslashreplace")


def test_a_bug_is_one_line_too(read: Read) -> None:
    """A traceback is a field."""
    try:
        raise ZeroDivisionError("1\n2")
    except ZeroDivisionError:
        logging.getLogger("edgefl").exception("it failed")
    (line,) = read()
    assert str(line["traceback"]).endswith("ZeroDivisionError: 1\n2")


def test_what_ends_a_command_is_logged_where_the_log_is_json(read: Read) -> None:
    """An error message does not break the stream; without a JSON log it is printed as ever."""
    assert process.complain("error: no\nbroker")
    (line,) = read()
    assert (line["level"], line["message"]) == ("error", "error: no\nbroker")
    logging.getLogger().handlers[:] = []
    assert not process.complain("error")


def test_an_unknown_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an unknown level is."""
    monkeypatch.setenv(process.FORMAT, "xml")
    with pytest.raises(ConfigError, match="EDGEFL_LOG_FORMAT is no format"):
        process.log_to_stderr()


@pytest.mark.slow
@pytest.mark.parametrize("by", ["option", "variable"])
def test_every_line_of_real_commands_parses(tmp_path: Path, by: str) -> None:
    """`device run` and `serve`, both without a broker: their standard error is JSON lines to the end."""
    fleet = create_fleet(tmp_path / "fleet", name="farm", host="127.0.0.1", port=9)
    (made,) = provision(fleet, ["cam-01"], "rpi-zero-2w", tmp_path / "out", data="npz:/nonexistent.npz")
    option, variable = (["--log-json"], {}) if by == "option" else ([], {"EDGEFL_LOG_FORMAT": "json"})
    environment = {name: value for name, value in os.environ.items() if name not in ("STATE_DIRECTORY", "EDGEFL_DEBUG")}
    edgefl = [sys.executable, "-m", "edgefl"]
    served = subprocess.run(
        [*edgefl, "serve", "--fleet", str(fleet.path), *option],
        env=environment | variable,
        capture_output=True,
        text=True,
        check=False,
    )
    (line,) = map(json.loads, served.stderr.splitlines())
    assert served.returncode == 4
    assert "connection refused" in line["message"]
    command = [*edgefl, "device", "run", str(made.bundle), *option]
    with subprocess.Popen(command, env=environment | variable, stderr=subprocess.PIPE, text=True) as process_:
        assert process_.stderr is not None
        first = json.loads(process_.stderr.readline())
        process_.terminate()
        rest = [json.loads(line) for line in process_.stderr.read().splitlines()]
        assert process_.wait(120) == 0
    assert (first["device"], first["level"]) == ("cam-01", "warning")
    assert "no connection" in first["message"]
    assert all(line["device"] == "cam-01" for line in rest)
