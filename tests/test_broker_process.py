"""`edgefl broker` as a process: how it begins, ends and fails, and what Mosquitto is told."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from brokerclient import arrives, open_client
from brokerprocess import KINDS, end, running, start
from edgefl.brokers.listener import Listener
from edgefl.brokers.mosquitto import Mosquitto, find_mosquitto, write_configuration
from edgefl.demo.stage import free_port
from edgefl.errors import BrokerError
from edgefl.server.founding import create_fleet
from edgefl.store.fleet import Fleet


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """A fleet without devices."""
    return create_fleet(tmp_path_factory.mktemp("fleet") / "farm", name="farm")


@pytest.mark.broker
@pytest.mark.parametrize("kind", KINDS)
def test_sigterm_ends_the_broker_and_frees_the_port(tmp_path: Path, kind: str) -> None:
    """The command ends with 0, and what it started ends with it: the port is free for the next one."""
    port, fleet = free_port(), create_fleet(tmp_path / "farm", name="farm")
    assert end(start(fleet, kind, port)) == 0
    assert end(start(fleet, kind, port)) == 0


@pytest.mark.broker
@pytest.mark.parametrize("kind", KINDS)
def test_a_taken_port_is_said_in_words(tmp_path: Path, kind: str) -> None:
    """Exit code 4, one line, what to do; no traceback."""
    fleet = create_fleet(tmp_path / "farm", name="farm")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        command = [sys.executable, "-m", "edgefl", "broker", "--fleet", str(fleet.path), "--broker", kind, "--port", port]
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert result.returncode == 4
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr
    assert "--port" in result.stderr
    assert "Traceback" not in result.stderr


def listener_for(fleet: Fleet, port: int) -> Listener:
    """The fleet's listener on another port."""
    return Listener(fleet.broker, fleet.root_certificate, fleet.broker_certificate, fleet.broker_key, port)


@pytest.mark.broker
@pytest.mark.skipif(find_mosquitto() is None, reason="Mosquitto is not installed")
def test_mosquitto_keeps_retained_messages_over_a_restart(fleet: Fleet) -> None:
    """What was retained before a clean stop is there afterwards."""
    port = free_port()
    for attempt in range(2):
        with running(fleet, "mosquitto", port) as broker:
            server = open_client(broker, "edgefl-server")
            if attempt == 0:
                server.publish("efl/v1/all/manifest/digits/x", b"kept", retain=True)
            else:
                server.subscribe("efl/v1/all/#")
                assert arrives(server, "efl/v1/all/manifest/digits/x")
            server.close()


@pytest.mark.broker
@pytest.mark.skipif(find_mosquitto() is None, reason="Mosquitto is not installed")
def test_a_refused_configuration_shows_mosquittos_words(tmp_path: Path) -> None:
    """A damaged certificate gives Mosquitto's own complaint, not a time-out."""
    fleet = create_fleet(tmp_path / "farm", name="farm")
    fleet.broker_certificate.write_text("no certificate")
    with pytest.raises(BrokerError, match="Mosquitto ended") as caught:
        Mosquitto(listener_for(fleet, free_port()))
    assert "certificate" in caught.value.found.lower()


@pytest.mark.broker
@pytest.mark.skipif(find_mosquitto() is None or not Path("/proc").is_dir(), reason="needs Mosquitto on Linux")
def test_a_killed_command_takes_mosquitto_with_it(fleet: Fleet) -> None:
    """Even kill -9 of `edgefl broker` leaves no Mosquitto behind on its port."""
    port = free_port()
    process = start(fleet, "mosquitto", port)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return
        time.sleep(0.05)
    pytest.fail("Mosquitto still listens")


def test_without_mosquitto_the_message_says_what_to_install(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without Mosquitto gets a way out."""
    monkeypatch.setattr("edgefl.brokers.mosquitto.find_mosquitto", lambda: None)
    with pytest.raises(BrokerError, match="apt install mosquitto"):
        Mosquitto(listener_for(fleet, 1))


def test_the_written_configuration_has_no_gaps(fleet: Fleet) -> None:
    """Every place of the template is filled in, and the access file lies beside it."""
    path = write_configuration(listener_for(fleet, 1883))
    settings = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    assert not any("@" in line for line in settings)
    assert "require_certificate true" in settings
    assert "listener 1883 127.0.0.1" in settings
    assert (path.parent / "acl").is_file()
