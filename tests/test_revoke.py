"""A revoked device at a real broker: out at once, by no way in again, and its neighbours notice nothing."""

import contextlib
import json
import socket
import ssl
import subprocess
import sys
import time
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import pytest

from camerafleet import broker, client, context_of, eventually, is_admitted, needs_mosquitto, two_cameras
from edgefl.brokers.mosquitto import find_mosquitto
from edgefl.brokers.revoked import crl_path
from edgefl.brokers.running import running_broker
from edgefl.cli.main import run
from edgefl.server.provision import provision
from edgefl.server.revoke import revoke_device
from edgefl.store.audit import events
from edgefl.store.database import open_database
from edgefl.store.fleet import Fleet


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """A fleet with cam-01 and cam-02, whose bundles lie beside it, on a free port."""
    return two_cameras(tmp_path)


KINDS = [
    pytest.param("mosquitto", marks=pytest.mark.skipif(find_mosquitto() is None, reason="Mosquitto is not installed")),
    pytest.param("embedded", marks=pytest.mark.skipif(find_spec("amqtt") is None, reason="amqtt is not installed")),
]
STATE = "efl/v1/up/cam-01/state"


def saved_session(fleet: Fleet, name: str) -> tuple[ssl.SSLContext, ssl.SSLSession]:
    """A TLS session of this device, as a thief would keep it."""
    context = context_of(fleet, name)
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # where a session is there as soon as the handshake is done
    with (
        socket.create_connection(("127.0.0.1", fleet.settings.port)) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as tls,
    ):
        assert tls.session is not None
        return context, tls.session


@pytest.mark.slow
@pytest.mark.broker
@pytest.mark.parametrize("kind", KINDS)
def test_a_revoked_device_is_out_at_once_and_nobody_else(fleet: Fleet, kind: str) -> None:
    """Its live session ends, it does not come back, its retained state is gone; the others' connections never end."""
    with (
        broker(fleet, kind),
        client(fleet, "edgefl-server", "efl/v1/up/#") as (server, _),
        client(fleet, "cam-01", "efl/v1/down/cam-01/#", retained=(STATE, b"here")) as (victim, _),
        client(fleet, "cam-02", "efl/v1/all/#") as (other, _),
        closing(open_database(fleet.database)) as database,
    ):
        assert eventually(lambda: (STATE, b"here", False) in server.heard)
        begun = time.monotonic()
        result = revoke_device(fleet, database, "cam-01", "stolen")
        assert result.complete, result
        assert victim.ends >= 1
        assert victim.connects == 1
        assert time.monotonic() - begun < 60.0
        assert (STATE, b"", False) in server.heard
        assert [event.event for event in events(database, "cam-01") if event.event.startswith("revo")] == [
            "revoked", "revocation: list done", "revocation: broker done", "revocation: session done"
        ]  # fmt: skip
        assert not is_admitted(fleet, "cam-01")
        assert (server.ends, other.ends) == (0, 0)


@needs_mosquitto
@pytest.mark.broker
def test_a_kept_tls_session_opens_nothing_after_revocation(fleet: Fleet) -> None:
    """Resumption skips the certificate; it works before, and does not survive the reload."""
    port = fleet.settings.port
    with broker(fleet), closing(open_database(fleet.database)) as database:
        context, session = saved_session(fleet, "cam-01")
        with (
            socket.create_connection(("127.0.0.1", port)) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1", session=session) as tls,
        ):
            assert tls.session_reused
        assert revoke_device(fleet, database, "cam-01").complete
        with socket.create_connection(("127.0.0.1", port)) as plain, pytest.raises((ssl.SSLError, OSError)):
            context.wrap_socket(plain, server_hostname="127.0.0.1", session=session)


@needs_mosquitto
@pytest.mark.broker
def test_a_connection_that_waited_at_the_door_is_mute(fleet: Fleet) -> None:
    """A thief who did the TLS handshake before the revocation, and says CONNECT only after it, is let in and can do nothing."""
    with (
        broker(fleet),
        closing(open_database(fleet.database)) as database,
        client(fleet, "edgefl-server", "efl/v1/up/#") as (server, chief),
        socket.create_connection(("127.0.0.1", fleet.settings.port)) as plain,
        context_of(fleet, "cam-01").wrap_socket(plain, server_hostname="127.0.0.1") as door,
    ):
        assert revoke_device(fleet, database, "cam-01").complete
        door.settimeout(5)
        door.sendall(b"\x10\x12\x00\x04MQTT\x04\x02\x00\x3c\x00\x06cam-01")
        assert door.recv(4) == b"\x20\x02\x00\x00"
        topic = STATE.encode()
        door.sendall(bytes((0x30, 2 + len(topic) + 4, 0, len(topic))) + topic + b"back")
        mine = b"efl/v1/all/#"
        door.sendall(bytes((0x82, 2 + 2 + len(mine) + 1, 0, 1, 0, len(mine))) + mine + b"\x00")
        assert door.recv(5)[:1] == b"\x90"
        chief.publish("efl/v1/all/round/m/v", b"secret", 1).wait_for_publish(5)
        chief.publish("efl/v1/up/cam-02/state", b"after", 1).wait_for_publish(5)
        assert eventually(lambda: ("efl/v1/up/cam-02/state", b"after", False) in server.heard)
        assert (STATE, b"back", False) not in server.heard
        door.settimeout(0.3)
        with pytest.raises(TimeoutError):
            door.recv(1)


@pytest.mark.broker
@pytest.mark.skipif(find_spec("amqtt") is None, reason="amqtt is not installed")
def test_the_embedded_broker_shuts_the_door_on_those_who_wait(fleet: Fleet) -> None:
    """It has no second wall behind the list, so it ends connections that have not said CONNECT when it reads a new one."""
    with (
        broker(fleet, "embedded"),
        closing(open_database(fleet.database)) as database,
        socket.create_connection(("127.0.0.1", fleet.settings.port)) as plain,
        context_of(fleet, "cam-01").wrap_socket(plain, server_hostname="127.0.0.1") as door,
    ):
        assert revoke_device(fleet, database, "cam-01").complete
        door.settimeout(5)
        with contextlib.suppress(OSError):
            door.sendall(b"\x10\x12\x00\x04MQTT\x04\x02\x00\x3c\x00\x06cam-01")
            assert door.recv(4) == b""


@needs_mosquitto
@pytest.mark.broker
def test_an_access_file_silences_what_a_lost_list_lets_in(fleet: Fleet) -> None:
    """Mosquitto goes on without a list that has vanished; even then the revoked device can neither speak nor hear."""
    with broker(fleet), closing(open_database(fleet.database)) as database:
        assert revoke_device(fleet, database, "cam-01").complete
        crl_path(fleet.broker).unlink()
        running = running_broker(fleet.broker)
        assert running is not None
        running.reload()
        with client(fleet, "edgefl-server", "efl/v1/up/#") as (server, chief):
            with client(fleet, "cam-01", "efl/v1/down/cam-01/#", retained=(STATE, b"back")) as (ghost, _):
                chief.publish("efl/v1/down/cam-01/receipt", b"for you", 1).wait_for_publish(5)
                with client(fleet, "cam-02", "efl/v1/all/#", retained=("efl/v1/up/cam-02/state", b"here")):
                    assert eventually(lambda: ("efl/v1/up/cam-02/state", b"here", False) in server.heard)
            assert not [topic for topic, *_ in server.heard if topic == STATE]
            assert ghost.heard == []


@needs_mosquitto
@pytest.mark.slow
@pytest.mark.broker
def test_a_real_agent_is_shut_out_and_its_neighbour_works_on(
    fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Broker, server and two agents as processes: one is revoked, says why it is offline, and the other never notices."""
    provision(fleet, ["cam-03", "cam-04"], "rpi-zero-2w", tmp_path / "agents", data="npz:/nonexistent.npz")
    edgefl = [sys.executable, "-m", "edgefl"]
    place, logs = ["--fleet", str(fleet.path)], {name: tmp_path / f"{name}.log" for name in ("serve", "cam-03", "cam-04")}
    commands = {"serve": [*edgefl, "serve", *place]}
    commands |= {name: [*edgefl, "device", "run", str(tmp_path / "agents" / name)] for name in ("cam-03", "cam-04")}

    def states() -> dict[str, dict[str, object]]:
        assert run(["status", "--json", *place]) == 0
        return {device["id"]: device for device in json.loads(capsys.readouterr().out)["devices"]}

    with contextlib.ExitStack() as stack:
        stack.enter_context(broker(fleet))
        for name, command in commands.items():
            log = stack.enter_context(logs[name].open("w"))
            process = stack.enter_context(subprocess.Popen(command, stdout=log, stderr=log))
            stack.callback(process.kill)
        assert eventually(lambda: states()["cam-03"]["online"] and states()["cam-04"]["online"])
        assert run(["devices", "revoke", "cam-03", "--json", *place]) == 0
        capsys.readouterr()
        assert eventually(lambda: "no connection" in logs["cam-03"].read_text())
        after = states()
    assert (after["cam-03"]["revoked"], after["cam-03"]["online"]) == (True, False)
    assert (after["cam-04"]["revoked"], after["cam-04"]["online"]) == (False, True)
    assert logs["cam-04"].read_text().count("INFO connected") == 1
    assert "no connection" not in logs["cam-04"].read_text()
