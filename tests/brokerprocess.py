"""`edgefl broker` as a process, of either kind, for as long as a test needs it.

No test in here. A test module imports it by its name (`pythonpath` in pyproject.toml).
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from edgefl.brokers.mosquitto import find_mosquitto
from edgefl.store.fleet import Fleet

KINDS = [
    pytest.param("mosquitto", marks=pytest.mark.skipif(find_mosquitto() is None, reason="Mosquitto is not installed")),
    pytest.param("embedded", marks=pytest.mark.skipif(find_spec("amqtt") is None, reason="amqtt is not installed")),
]


@dataclass
class Running:
    """A broker process, its fleet, and the TLS files of its devices."""

    process: subprocess.Popen[str]
    fleet: Fleet
    bundles: Path
    port: int


@contextmanager
def running(fleet: Fleet, kind: str, port: int) -> Iterator[Running]:
    """`edgefl broker` for as long as the block lasts, whatever happens in it."""
    process = start(fleet, kind, port)
    try:
        yield Running(process, fleet, fleet.path.parent / "bundles", port)
    finally:
        end(process)


def start(fleet: Fleet, kind: str, port: int) -> subprocess.Popen[str]:
    """`edgefl broker`, ready."""
    command = [sys.executable, "-m", "edgefl", "broker", "--fleet", str(fleet.path), "--broker", kind, "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    line = process.stdout.readline()
    assert line == f"broker ready on 127.0.0.1:{port} ({kind})\n", process.stderr.read()
    return process


def end(process: subprocess.Popen[str]) -> int:
    """Ask a process to end; its exit code."""
    process.terminate()
    try:
        process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode
