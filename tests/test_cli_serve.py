"""`edgefl serve` as a real process: what it refuses, and how it ends."""

import os
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from edgefl.server.founding import create_fleet
from edgefl.store.fleet import Fleet
from edgefl.store.lock import file_lock

COMMAND = [sys.executable, "-m", "edgefl"]


def free_port() -> int:
    """A port that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """An empty fleet whose broker, if any, is on a free port."""
    return create_fleet(tmp_path / "farm", name="farm", port=free_port())


def serve(fleet: Fleet, **environment: str) -> subprocess.CompletedProcess[str]:
    """`edgefl serve` that is expected to end by itself."""
    command = [*COMMAND, "serve", "--fleet", str(fleet.path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **environment}, check=False)


def test_absent_broker_is_named_with_what_to_do(fleet: Fleet) -> None:
    """Without a broker the server ends at once with exit code 4, the address, the reason and the remedy, in one line."""
    result = serve(fleet)
    assert result.returncode == 4
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    for word in ("127.0.0.1", str(fleet.settings.port), "connection refused", "Start the broker"):
        assert word in result.stderr


def test_second_server_of_a_fleet_is_refused(fleet: Fleet) -> None:
    """While one server holds the fleet another one does not even connect, and says why."""
    with file_lock(fleet.path / "serve.lock") as held:
        assert held
        result = serve(fleet)
    assert result.returncode == 2
    assert "is being served already" in result.stderr
    assert serve(fleet).returncode == 4  # free again: now it is only the broker that is missing


def test_damaged_key_and_wrong_log_level_are_worded(fleet: Fleet) -> None:
    """A signing key that is none, and a level that is none, are input errors without a traceback."""
    assert serve(fleet, EDGEFL_LOG="loud").returncode == 2
    (fleet.keys / "online.key").write_text("hello")
    result = serve(fleet)
    assert result.returncode == 2
    assert "signing key is damaged" in result.stderr


@pytest.mark.broker
@pytest.mark.slow
@pytest.mark.skipif(find_spec("amqtt") is None, reason="amqtt is not installed")
def test_server_lives_and_ends_in_order_on_a_real_broker(fleet: Fleet, tmp_path: Path) -> None:
    """It ends with 0 on SIGTERM, is alone, leaves nothing in the way when killed, and is worded about a wrong certificate."""
    command = [*COMMAND, "broker", "--fleet", str(fleet.path), "--broker", "embedded"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as broker:
        try:
            assert broker.stdout is not None
            assert broker.stdout.readline().startswith("broker ready")
            with running(fleet) as first:
                assert serve(fleet).returncode == 2
                assert first.poll() is None
                first.send_signal(signal.SIGKILL)
                first.wait(120)
            with running(fleet) as second:
                time.sleep(0.2)
                second.send_signal(signal.SIGTERM)
                assert second.wait(120) == 0
            other = create_fleet(tmp_path / "other", name="other")
            fleet.server_certificate.write_bytes(other.server_certificate.read_bytes())
            result = serve(fleet)
            assert result.returncode == 4
            assert "certificate" in result.stderr
        finally:
            broker.terminate()


def running(fleet: Fleet) -> subprocess.Popen[str]:
    """A server that serves."""
    command = [*COMMAND, "serve", "--fleet", str(fleet.path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("serving fleet farm at ")
    return process
