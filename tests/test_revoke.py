import contextlib
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest

from edgefl.brokers.mosquitto import find_mosquitto
from edgefl.brokers.revoked import canary_files, crl_path, current_list, write_list
from edgefl.brokers.running import only_broker, running_broker
from edgefl.cli.main import run
from edgefl.errors import BrokerError, FleetError, SignatureError
from edgefl.identity.authority import found_authority
from edgefl.identity.crl import read_crl, sign_crl
from edgefl.link.address import BrokerAddress
from edgefl.link.probe import Probe
from edgefl.server.founding import authority_of, create_fleet
from edgefl.server.provision import provision
from edgefl.server.revoke import LOCK, refresh_list, revoke_device
from edgefl.store.audit import events, record
from edgefl.store.database import open_database
from edgefl.store.fleet import Fleet
from edgefl.store.lock import file_lock
from edgefl.store.registry import get_device
from edgefl.store.revocations import revoke, revoked_devices, revoked_serials

KINDS = [
    pytest.param("mosquitto", marks=pytest.mark.skipif(find_mosquitto() is None, reason="Mosquitto is not installed")),
    pytest.param("embedded", marks=pytest.mark.skipif(find_spec("amqtt") is None, reason="amqtt is not installed")),
]
needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="Mosquitto is not installed")
STATE = "efl/v1/up/cam-01/state"


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """A fleet with cam-01 and cam-02, whose bundles lie beside it, on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    made = create_fleet(tmp_path / "farm", name="farm", port=port)
    provision(made, ["cam-01", "cam-02"], "rpi-zero-2w", tmp_path / "bundles")
    return made


@contextmanager
def broker(fleet: Fleet, kind: str = "mosquitto") -> Iterator[subprocess.Popen[str]]:
    """`edgefl broker` for as long as the block lasts."""
    command = [sys.executable, "-m", "edgefl", "broker", "--broker", kind, "--fleet", str(fleet.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert "ready" in process.stdout.readline()
            yield process
        finally:
            process.terminate()


def context_of(fleet: Fleet, name: str) -> ssl.SSLContext:
    """TLS as this device or the server does it."""
    context = ssl.create_default_context(cafile=str(fleet.root_certificate))
    bundle = fleet.path.parent / "bundles" / name
    pair = (
        (fleet.server_certificate, fleet.server_key)
        if name == "edgefl-server"
        else (bundle / "device.crt", bundle / "device.key")
    )
    context.load_cert_chain(*pair)
    return context


@dataclass
class Client:
    """A real client on its own thread, which connects once more whenever it is thrown out."""

    connects: int = 0
    ends: int = 0
    heard: list[tuple[str, bytes, bool]] = field(default_factory=list)
    subscribed: threading.Event = field(default_factory=threading.Event)


@contextmanager
def client(
    fleet: Fleet, name: str, topic: str, *, retained: tuple[str, bytes] | None = None
) -> Iterator[tuple[Client, mqtt.Client]]:
    """A client that keeps a session, listens, reconnects, and may leave something retained."""
    noted = Client()
    raw = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, name, clean_session=False)
    raw.tls_set_context(context_of(fleet, name))
    raw.reconnect_delay_set(0.1, 0.2)

    def on_connect(*_: object) -> None:
        noted.connects += 1
        raw.subscribe(topic, 1)
        if retained:
            raw.publish(*retained, qos=1, retain=True)

    raw.on_connect = on_connect
    raw.on_disconnect = lambda *_: setattr(noted, "ends", noted.ends + 1)
    raw.on_subscribe = lambda *_: noted.subscribed.set()
    raw.on_message = lambda _c, _u, m: noted.heard.append((m.topic, m.payload, m.retain))
    raw.connect("127.0.0.1", fleet.settings.port, 30)
    raw.loop_start()
    try:
        assert noted.subscribed.wait(120)
        yield noted, raw
    finally:
        raw.disconnect()
        raw.loop_stop()


def is_admitted(fleet: Fleet, name: str) -> bool:
    """Whether the broker lets in whoever shows this device's certificate."""
    bundle = fleet.path.parent / "bundles" / name
    files = fleet.root_certificate, bundle / "device.crt", bundle / "device.key"
    with Probe(BrokerAddress("127.0.0.1", fleet.settings.port, *files), name) as probe:
        return probe.accepted


def eventually(condition: object, seconds: float = 120.0) -> bool:
    """Whether a condition comes true in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.02)
    return False


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
@pytest.mark.broker
def test_a_broker_that_does_not_read_the_list_is_not_believed(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    """A Mosquitto without `crlfile`: exit code 4, `broker no`, `session no`, and what to do."""
    from edgefl.brokers.listener import Listener
    from edgefl.brokers.mosquitto import Mosquitto

    listener = Listener(fleet.broker, fleet.root_certificate, fleet.broker_certificate, fleet.broker_key, fleet.settings.port)
    with Mosquitto(listener), client(fleet, "cam-01", "efl/v1/down/cam-01/#") as (victim, _):
        assert run(["devices", "revoke", "cam-01", "--fleet", str(fleet.path), "--json"]) == 4
        assert eventually(lambda: victim.connects >= 2)  # it is back, as the report feared
    report = json.loads(capsys.readouterr().out)
    assert [(step["name"], step["done"]) for step in report["steps"]] == [
        ("registry", True), ("list", True), ("broker", False), ("session", False)
    ]  # fmt: skip
    assert "taken from us" in report["steps"][3]["text"]
    assert "--reload" in report["steps"][2]["remedy"]


@needs_mosquitto
@pytest.mark.broker
@pytest.mark.parametrize("command", ["kill -HUP {pid}", "false", "/nonexistent"])
def test_a_broker_of_somebody_else_reloads_by_a_command(fleet: Fleet, capsys: pytest.CaptureFixture[str], command: str) -> None:
    """A Mosquitto that runs as a service is told by the command that the operator gives; one that fails proves nothing."""
    assert run(["broker", "configure", "--bind", "127.0.0.1", "--fleet", str(fleet.path)]) == 0
    with subprocess.Popen(
        [str(find_mosquitto()), "-c", str(fleet.broker / "mosquitto.conf")], stderr=subprocess.DEVNULL
    ) as process:
        try:
            assert eventually(lambda: is_admitted(fleet, "cam-02"))
            arguments = ["--reload", command.format(pid=process.pid), "--fleet", str(fleet.path)]
            assert run(["devices", "revoke", "cam-01", *arguments]) == (0 if "pid" in command else 4)
            assert is_admitted(fleet, "cam-01") == ("pid" not in command)
        finally:
            process.terminate()
    assert ("could not be told" in capsys.readouterr().out) == ("pid" not in command)


def test_without_a_broker_the_rest_is_done_and_said(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    """Registry and list do not wait for a broker; the command says what is left, and may be given again."""
    command = ["devices", "revoke", "cam-01", "--reason", "stolen", "--fleet", str(fleet.path)]
    assert run(command) == 4
    lines = capsys.readouterr().out.splitlines()
    assert [line[:13].split() for line in lines[:4]] == [
        ["registry", "yes"],
        ["list", "yes"],
        ["broker", "no"],
        ["session", "no"],
    ]
    assert lines[4].startswith("to do: Start the broker")
    assert run(command) == 4
    assert "was revoked before" in capsys.readouterr().out
    assert run(["devices", "ls", "--fleet", str(fleet.path)]) == 0
    assert "revoked" in capsys.readouterr().out.splitlines()[0]
    crl = current_list(fleet.broker, authority_of(fleet))
    with closing(open_database(fleet.database)) as database:
        assert crl is not None
        assert int(get_device(database, "cam-01").certificate, 16) in crl.serials
        assert [event.detail for event in events(database, "cam-01") if event.event == "revoked"] == ["stolen"]
    assert "user cam-01\ntopic deny #" in (fleet.broker / "acl").read_text()


def test_an_unknown_device_cannot_be_revoked(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2; no list is written."""
    assert run(["devices", "revoke", "cam-09", "--fleet", str(fleet.path)]) == 2
    assert "no device 'cam-09'" in capsys.readouterr().err
    assert not crl_path(fleet.broker).exists()


def test_revocation_reaches_everything_that_could_bring_a_device_back(fleet: Fleet) -> None:
    """Older and newer certificates are listed, an open claim is closed, presence is ended; another device's are not touched."""
    with closing(open_database(fleet.database)) as database:
        with database:
            for serial, device in (("a1", "cam-01"), ("a2", "cam-01"), ("b1", "cam-02")):
                row = (serial, device, 0.0, 1.0, "active", 0.0)
                database.execute(
                    "INSERT INTO certificates (serial, device, issued, expires, state, changed) VALUES (?, ?, ?, ?, ?, ?)", row
                )
            database.execute("INSERT INTO claims VALUES ('cam-01', 'p', x'00', 0, 1e12, NULL)")
            database.execute("INSERT INTO presence VALUES ('cam-01', 1, 1, 0, x'00', NULL)")
        assert revoke(database, "cam-01", "", 5.0)
        assert not revoke(database, "cam-01", "", 6.0)
        assert revoked_devices(database) == ("cam-01",)
        own = int(get_device(database, "cam-01").certificate, 16)
        assert revoked_serials(database) == {own: 5.0, 0xA1: 5.0, 0xA2: 5.0}
        assert database.execute("SELECT used FROM claims").fetchone()[0] == 5.0
        assert database.execute("SELECT online FROM presence").fetchone()[0] == 0
        with pytest.raises(FleetError, match="no device 'cam-09'"):
            revoke(database, "cam-09", "", 7.0)


def test_the_audit_keeps_its_order(fleet: Fleet) -> None:
    """Events come back as they were recorded, all or a device's."""
    with closing(open_database(fleet.database)) as database:
        with database:
            record(database, 2.0, "issued", "cam-01")
            record(database, 1.0, "issued", "cam-02", "by hand")
        assert [(e.at, e.event, e.device, e.detail) for e in events(database)][-2:] == [
            (2.0, "issued", "cam-01", ""), (1.0, "issued", "cam-02", "by hand")
        ]  # fmt: skip
        assert [event.at for event in events(database, "cam-02")][-1] == 1.0


def test_a_list_of_another_authority_is_refused() -> None:
    """Of another fleet of the same name, of the root instead of the intermediate, changed, cut short, or no list at all."""
    authority, root = found_authority("farm")
    other, _ = found_authority("farm")
    good = sign_crl(authority, {7: 0.0})
    assert read_crl(good, authority).serials == {7}
    with pytest.raises(SignatureError, match="signature"):
        read_crl(sign_crl(other, {}), authority)
    with pytest.raises(SignatureError, match="another authority"):
        read_crl(sign_crl(found_authority("barn")[0], {}), authority)
    for bad in (b"", b"garbage", good[:-60], root.certificate):
        with pytest.raises(SignatureError, match="decode"):
            read_crl(bad, authority)


def test_lists_only_rise(fleet: Fleet) -> None:
    """Of two lists in the same second the later has the higher number and the later beginning; a foreign one is replaced."""
    authority = authority_of(fleet)
    first = write_list(fleet.broker, authority, {1: 0.0}, time.time())
    second = write_list(fleet.broker, authority, {1: 0.0, 2: 0.0}, time.time(), [3])
    third = write_list(fleet.broker, authority, {1: 0.0, 2: 0.0}, time.time())
    assert first.number < second.number < third.number
    assert first.begins < second.begins < third.begins < time.time()
    assert second.serials - third.serials == {3}
    assert third.ends - time.time() > 360 * 86400
    crl_path(fleet.broker).write_bytes(b"garbage")
    assert write_list(fleet.broker, authority, {1: 0.0}, time.time()).serials > {1}
    assert canary_files(fleet.broker) is not None


@needs_mosquitto
@pytest.mark.slow
@pytest.mark.broker
def test_an_expired_list_locks_nobody_out(fleet: Fleet) -> None:
    """A list past its date is signed anew when the broker starts; put under a running one, it locks out until it is refreshed."""
    authority = authority_of(fleet)
    expired = sign_crl(authority, {}, days=-0.5)
    crl_path(fleet.broker).write_bytes(expired)
    with broker(fleet):
        assert is_admitted(fleet, "cam-01")
        crl_path(fleet.broker).write_bytes(expired)
        running = running_broker(fleet.broker)
        assert running is not None
        running.reload()
        time.sleep(0.5)
        assert not is_admitted(fleet, "cam-01")
        assert run(["broker", "configure", "--bind", "127.0.0.1", "--fleet", str(fleet.path)]) == 0
        running.reload()
        time.sleep(0.5)
        assert is_admitted(fleet, "cam-01")


@needs_mosquitto
@pytest.mark.broker
def test_a_running_broker_signs_anew_in_time(fleet: Fleet) -> None:
    """The command's own clock brings a list with a higher number, without anybody asking."""
    script = "import edgefl.cli.broker as b\nb.RENEW_SECONDS = 0.2\nfrom edgefl.cli.main import main\nmain()"
    command = [sys.executable, "-c", script, "broker", "--broker", "mosquitto", "--fleet", str(fleet.path)]
    authority = authority_of(fleet)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert "ready" in process.stdout.readline()
            first = current_list(fleet.broker, authority)
            assert first is not None
            assert eventually(
                lambda: (crl := current_list(fleet.broker, authority)) is not None and crl.number > first.number + 1
            )
            assert is_admitted(fleet, "cam-01")
            fleet.intermediate_key.rename(fleet.path / "away")
            assert process.stderr is not None
            assert "not signed anew" in process.stderr.readline()
            assert process.poll() is None  # a renewal that fails costs a warning, not the broker
            (fleet.path / "away").rename(fleet.intermediate_key)
        finally:
            process.terminate()


def test_two_signers_take_turns(fleet: Fleet) -> None:
    """While one signs, another waits and only then looks at the registry, so that no list forgets whom a later one names."""
    found: list[frozenset[int]] = []

    def sign() -> None:
        with closing(open_database(fleet.database)) as database:
            found.append(refresh_list(fleet, database, authority_of(fleet), time.time()).serials)

    with closing(open_database(fleet.database)) as database:
        with file_lock(fleet.broker / LOCK):
            waiting = threading.Thread(target=sign)
            waiting.start()
            time.sleep(0.3)
            assert found == []
            revoke(database, "cam-01", "", 1.0)
        waiting.join(60)
        assert int(get_device(database, "cam-01").certificate, 16) in found[0]


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


def test_the_process_file_is_believed_only_while_it_is_held(fleet: Fleet) -> None:
    """A number that a dead broker left behind is never signalled; a second broker of a fleet is refused."""
    assert running_broker(fleet.broker) is None
    (fleet.broker / "mosquitto.pid").write_text("1 127.0.0.1 8883\n")
    assert running_broker(fleet.broker) is None
    with only_broker(fleet.broker, "mosquitto"):
        assert running_broker(fleet.broker) is None  # held, but it does not run yet
        with pytest.raises(BrokerError, match="runs already"), only_broker(fleet.broker, "mosquitto"):
            pass
    with contextlib.suppress(FileNotFoundError):
        assert (fleet.broker / "mosquitto.pid").read_text() == ""


def test_the_root_key_may_live_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The fleet directory never holds it, and everything else works without it: provisioning, opening, revoking."""
    stick = tmp_path / "stick"
    stick.mkdir()
    assert run(["init", str(tmp_path / "farm"), "--root", str(stick)]) == 0
    assert f"keep {stick / 'root.key'} offline" in capsys.readouterr().out
    assert not (tmp_path / "farm" / "ca" / "root.key").exists()
    assert sorted(path.name for path in stick.iterdir()) == ["metadata-root.key", "root.crt", "root.key"]
    assert (stick / "root.key").stat().st_mode & 0o777 == 0o600
    fleet = Fleet.open(tmp_path / "farm")
    assert fleet.root_certificate.read_bytes() == (stick / "root.crt").read_bytes()
    provision(fleet, ["cam-01"], "rpi-zero-2w", tmp_path / "bundles")
    assert run(["devices", "revoke", "cam-01", "--fleet", str(fleet.path)]) == 4  # no broker runs here


@pytest.mark.parametrize("fault", ["missing", "inside", "used", "fleet exists"])
def test_a_place_for_the_root_key_that_cannot_be_used_leaves_nothing(tmp_path: Path, fault: str) -> None:
    """Refused in words; neither a fleet nor a stray key is left, and no other root's key is overwritten."""
    place = tmp_path / "farm" / "stick" if fault == "inside" else tmp_path / "stick"
    if fault != "missing":
        place.mkdir(parents=True)
    if fault == "used":
        (place / "root.key").write_text("another's")
    if fault == "fleet exists":
        create_fleet(tmp_path / "farm", name="farm")
    with pytest.raises(FleetError):
        create_fleet(tmp_path / "farm", name="farm", root=place)
    if fault == "used":
        assert (place / "root.key").read_text() == "another's"
    else:
        assert not (place / "root.key").exists()
    assert (tmp_path / "farm" / "fleet.toml").exists() == (fault == "fleet exists")
