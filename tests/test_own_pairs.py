import datetime as dt
import json
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from edgefl.brokers.handshake import is_refused, shown_serial
from edgefl.brokers.mosquitto import find_mosquitto
from edgefl.brokers.running import only_broker
from edgefl.brokers.wallet import Wallet
from edgefl.cli.main import run
from edgefl.errors import FleetError, StoreError
from edgefl.identity.authority import found_authority
from edgefl.link.address import BrokerAddress
from edgefl.link.contract import Arrived, Connected, Event, Message
from edgefl.link.memory import MemoryLink
from edgefl.link.memory_broker import MemoryBroker
from edgefl.link.paho import PahoLink
from edgefl.names import BROKER, SERVER
from edgefl.server import pairs
from edgefl.server.endings import endings
from edgefl.server.founding import authority_of, create_fleet
from edgefl.server.own_pair import TRY_SECONDS, OwnPair
from edgefl.server.provision import provision
from edgefl.store.audit import events
from edgefl.store.credentials import certificates_of
from edgefl.store.database import open_database
from edgefl.store.fleet import Fleet

DAY = 86400.0
KINDS = [
    pytest.param("mosquitto", marks=pytest.mark.skipif(find_mosquitto() is None, reason="Mosquitto is not installed")),
    pytest.param("embedded", marks=pytest.mark.skipif(find_spec("amqtt") is None, reason="amqtt is not installed")),
]
needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="Mosquitto is not installed")


def free_port() -> int:
    """A port that nothing listens on at the moment, nor on the next one."""
    while True:
        with socket.socket() as one, socket.socket() as next_one:
            one.bind(("127.0.0.1", 0))
            port = int(one.getsockname()[1])
            try:
                next_one.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """A fleet with the device cam-01, whose bundle lies beside it."""
    made = create_fleet(tmp_path / "farm", name="farm", port=free_port(), claim_port=free_port())
    provision(made, ["cam-01"], "rpi-zero-2w", tmp_path / "bundles")
    return made


@contextmanager
def process(fleet: Fleet, ready: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """An `edgefl` process, from the line that says it is ready until the end of the block."""
    command = [sys.executable, "-m", "edgefl", *words, "--fleet", str(fleet.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        try:
            assert child.stdout is not None
            line = child.stdout.readline()
            while line and ready not in line:
                line = child.stdout.readline()
            assert ready in line
            yield child
        finally:
            child.terminate()


def eventually(happened: Callable[[], bool], seconds: float = 15.0) -> bool:
    """Whether it happens in time."""
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def device_address(fleet: Fleet) -> BrokerAddress:
    """The broker, with cam-01's pair."""
    bundle = fleet.path.parent / "bundles" / "cam-01"
    return BrokerAddress("127.0.0.1", fleet.settings.port, bundle / "ca.crt", bundle / "device.crt", bundle / "device.key")


def server_link(fleet: Fleet) -> PahoLink:
    """The server's link, as `edgefl serve` makes it."""
    files = fleet.root_certificate, fleet.server_certificate, fleet.server_key
    return PahoLink(BrokerAddress("127.0.0.1", fleet.settings.port, *files), SERVER, clean_session=False)


def states(fleet: Fleet, name: str) -> list[str]:
    """Of all certificates that an owner had, oldest first."""
    with closing(open_database(fleet.database)) as database:
        return [one.state for one in certificates_of(database, name)]


def age(fleet: Fleet, owner: str, days: float, life: float = 100.0) -> None:
    """Put a pair in place that was made `days` ago, for `life` days."""
    authority, then = authority_of(fleet), dt.datetime.now(dt.UTC) - dt.timedelta(days=days)
    made = authority.broker(now=then, days=life) if owner == "broker" else authority.server(now=then, days=life)
    fleet.pair(owner).write_bytes(made.key + made.certificate)


def fits(path: Path) -> bool:
    """Whether the key in a file is its certificate's."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(path)
    except ssl.SSLError:
        return False
    return True


@pytest.mark.broker
@pytest.mark.parametrize("kind", KINDS)
def test_the_broker_takes_up_a_new_pair_while_devices_stay_connected(
    fleet: Fleet, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """After `certificates renew broker` a handshake shows the new certificate, and a device's connection has not ended."""
    claims = ["--claims"] if kind == "mosquitto" else []
    with process(fleet, "broker ready", "broker", "--broker", kind, *claims):
        device = PahoLink(device_address(fleet), "cam-01")
        device.connect()
        device.poll(0.1)
        before = shown_serial(device_address(fleet))
        assert run(["certificates", "renew", "broker", "--json", "--fleet", str(fleet.path)]) == 0
        (result,) = json.loads(capsys.readouterr().out)
        assert result["complete"]
        assert shown_serial(device_address(fleet)) == result["serial"] != before
        assert not [event for event in device.poll(0.5) if not isinstance(event, Arrived)]
        assert device.connected
        device.close()
        if claims:
            door = replace(device_address(fleet), port=fleet.settings.claim_port)
            assert eventually(lambda: shown_serial(door) == result["serial"])
    assert states(fleet, BROKER) == ["replaced", "active"]
    assert fits(fleet.pair("broker"))


@needs_mosquitto
@pytest.mark.broker
def test_the_server_changes_its_pair_and_loses_neither_session_nor_message(fleet: Fleet) -> None:
    """A device speaks without pause while the server's link changes its certificate: every message arrives, in one session."""
    with ExitStack() as stack:
        stack.enter_context(process(fleet, "broker ready", "broker"))
        database = stack.enter_context(closing(open_database(fleet.database)))
        wallet = stack.enter_context(Wallet("127.0.0.1", fleet.settings.port, fleet.root_certificate))
        old = wallet.of_files(*(copy(fleet.pair("server")),) * 2)
        server, device = server_link(fleet), PahoLink(device_address(fleet), "cam-01")
        stack.callback(server.close)
        stack.callback(device.close)
        server.subscribe("efl/v1/up/#")
        server.connect()
        device.connect()
        pair = OwnPair(fleet, database, server, time.time, time.monotonic)
        heard: list[Event] = []
        for number in range(60):
            device.publish("efl/v1/up/cam-01/state", b"%d" % number)
            device.poll(0.01)
            if number == 20:
                pairs.renew(fleet, database, "server", time.time())
            pair.look()
            for event in server.poll(0.01):
                heard.append(event)
                if isinstance(event, Connected):
                    pair.connected()
        assert eventually(lambda: bool(heard.extend(server.poll(0.05))) or len(numbers(heard)) >= 60)
        assert numbers(heard) == {b"%d" % number for number in range(60)}
        assert [event for event in heard if isinstance(event, Connected)][-1].session_present
        assert states(fleet, SERVER) == ["revoked", "active"]
        assert eventually(lambda: is_refused(old))
        assert not is_refused(wallet.of_files(fleet.server_certificate, fleet.server_key))


def copy(path: Path) -> Path:
    """A file's content under another name."""
    other = path.with_name(f"copy-of-{path.name}")
    other.write_bytes(path.read_bytes())
    return other


def numbers(heard: list[Event]) -> set[bytes]:
    """What the device has said."""
    return {event.payload for event in heard if isinstance(event, Arrived)}


@needs_mosquitto
@pytest.mark.broker
def test_one_command_renews_both_in_a_running_fleet_and_proves_it(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    """`certificates renew broker server` says yes to every step; the audit tells the story; the days are those asked for."""
    with process(fleet, "broker ready", "broker"), process(fleet, "serving fleet", "serve"):
        words = ["certificates", "renew", "broker", "server", "--days", "30", "--json", "--fleet", str(fleet.path)]
        assert run(words) == 0
    results = json.loads(capsys.readouterr().out)
    assert [(step["name"], step["done"]) for result in results for step in result["steps"]] == [
        ("pair", True), ("broker", True), ("pair", True), ("server", True), ("list", True), ("broker", True)
    ]  # fmt: skip
    assert all(abs(result["ends"] - time.time() - 30 * DAY) < 600 for result in results)
    with closing(open_database(fleet.database)) as database:
        told = [event.event for event in events(database, SERVER)]
    assert told == ["certificate-issued", "certificate-issued", "certificate-revoked", "certificate-active"]


def test_without_a_broker_a_renewal_says_what_is_left(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    """The new pair is in place for the next start; the exit code and a line say that nobody could be asked."""
    before = fleet.pair("server").read_bytes()
    assert run(["certificates", "renew", "server", "--fleet", str(fleet.path)]) == 4
    assert "to do: Start `edgefl broker`" in capsys.readouterr().out
    assert fleet.pair("server").read_bytes() != before
    assert states(fleet, SERVER) == ["revoked", "active"]


@needs_mosquitto
@pytest.mark.broker
def test_a_server_that_is_not_let_in_with_its_new_pair_goes_back(fleet: Fleet) -> None:
    """After a while without a connection the old pair is in place again, connects, and is not revoked."""
    now = [0.0]
    old = fleet.pair("server").read_bytes()
    with process(fleet, "broker ready", "broker"), closing(open_database(fleet.database)) as database:
        server = server_link(fleet)
        pair = OwnPair(fleet, database, server, time.time, lambda: now[0])
        server.connect()
        pairs.renew(fleet, database, "server", time.time())
        stranger, _ = found_authority("farm")
        refused = stranger.server()
        fleet.pair("server").write_bytes(refused.key + refused.certificate)
        pair.look()
        server.poll(1.0)
        assert not server.connected
        now[0] = TRY_SECONDS + 1.0
        pair.look()
        assert fleet.pair("server").read_bytes() == old
        deadline = time.monotonic() + 30.0
        while not server.connected and time.monotonic() < deadline:  # an attempt with the other pair may still be going on
            pair.look()
            server.poll(0.1)
        assert server.connected
        pair.connected()
        assert states(fleet, SERVER) == ["active", "revoked"]  # the new one's key is gone
        assert "renewal-undone" in [event.event for event in events(database, SERVER)]
        server.close()


def test_a_pair_that_replaces_the_one_just_connected_with_is_not_taken_for_it(fleet: Fleet) -> None:
    """Renewed between the connection and its event, the old pair is not revoked before the broker has accepted the new one."""
    with closing(open_database(fleet.database)) as database:
        link = MemoryLink(MemoryBroker(), SERVER)
        pair = OwnPair(fleet, database, link, time.time, time.monotonic)
        link.poll(0.0)
        pairs.renew(fleet, database, "server", time.time())
        pair.connected()
        assert states(fleet, SERVER) == ["active", "pending"]
        pair.look()
        pair.connected()  # the event of before comes late
        assert states(fleet, SERVER) == ["active", "pending"]
        assert eventually(lambda: Connected(False) in link.poll(0.0))
        pair.connected()
    assert states(fleet, SERVER) == ["revoked", "active"]


@pytest.mark.parametrize("here", [True, False])
@pytest.mark.parametrize("days", [50, 70])
def test_the_server_renews_in_time_where_the_broker_is_ours(fleet: Fleet, here: bool, days: int) -> None:
    """Of a hundred days of life sixty pass; then the server makes its next pair, unless the broker runs elsewhere."""
    age(fleet, "server", days)
    before = fleet.pair("server").read_bytes()
    with ExitStack() as stack:
        database = stack.enter_context(closing(open_database(fleet.database)))
        if here:
            stack.enter_context(only_broker(fleet.broker, "mosquitto"))
            (fleet.broker / "mosquitto.pid").write_text(f"{2**22 + 1} 127.0.0.1 {fleet.settings.port}\n")
        link = MemoryLink(MemoryBroker(), SERVER, will=Message("efl/v1/x", b"", 0))
        link.poll(0.0)
        pair = OwnPair(fleet, database, link, time.time, time.monotonic)
        pair.look()
    assert (fleet.pair("server").read_bytes() != before) == (here and days == 70)
    if here and days == 70:
        life = pairs.held(fleet, "server")
        assert round((life.ends - life.begins) / DAY) == 101  # as long as the one before, and a day early


@needs_mosquitto
@pytest.mark.broker
def test_a_broker_whose_certificate_has_ended_starts_with_a_new_one(fleet: Fleet) -> None:
    """A fleet that lay in a drawer for too long works again without a word."""
    age(fleet, "broker", 120)
    with process(fleet, "broker ready", "broker"):
        assert shown_serial(device_address(fleet)) == pairs.held(fleet, "broker").serial
    assert pairs.held(fleet, "broker").ends > time.time()


def test_the_brokers_new_certificate_names_the_host_of_today(fleet: Fleet) -> None:
    """Hosts that it named stay, and the one in fleet.toml joins them."""
    settings = fleet.path / "fleet.toml"
    settings.write_text(settings.read_text().replace('host = "127.0.0.1"', 'host = "broker.example"'))
    moved = Fleet.open(fleet.path)
    with closing(open_database(moved.database)) as database:
        made = pairs.renew(moved, database, "broker", time.time())
    assert set(made.hosts) == {"localhost", "127.0.0.1", "broker.example"}


@pytest.mark.parametrize("owner", ["broker", "server"])
@pytest.mark.parametrize("moment", range(3))
def test_a_full_disk_leaves_a_pair_that_works(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, owner: pairs.Owner, moment: int
) -> None:
    """Whichever write fails, key and certificate in place belong together, and the next renewal succeeds."""
    real, count = pairs.write_file, [0]

    def failing(path: Path, data: bytes, mode: int = 0o644) -> None:
        count[0] += 1
        if count[0] > moment:
            raise StoreError("disk full")
        real(path, data, mode)

    with closing(open_database(fleet.database)) as database:
        monkeypatch.setattr(pairs, "write_file", failing)
        with suppress(StoreError):
            pairs.renew(fleet, database, owner, time.time())
        assert fits(fleet.pair(owner))
        monkeypatch.setattr(pairs, "write_file", real)
        made = pairs.renew(fleet, database, owner, time.time())
        assert pairs.note_use(fleet, database, owner, time.time(), made.serial)
        assert states(fleet, pairs.NAMES[owner]).count("active") == 1
    assert fits(fleet.pair(owner))
    assert not pairs.previous(fleet).exists()


def test_a_fleet_with_pairs_in_two_files_is_brought_up_to_date(fleet: Fleet) -> None:
    """A fleet directory of an older edgefl opens, keeps its pairs, and has each of them in one file from then on."""
    authority = authority_of(fleet)
    made = {"broker": authority.broker(), "server": authority.server()}
    for owner, identity in made.items():
        fleet.pair(owner).unlink()
        (fleet.keys / f"{owner}.key").write_bytes(identity.key)
        (fleet.keys / f"{owner}.crt").write_bytes(identity.certificate)
    older = Fleet.open(fleet.path)
    assert older.server_key != older.server_certificate
    assert pairs.held(older, "broker").serial == made["broker"].serial
    pairs.join_pairs(older)
    assert older.server_key == older.server_certificate == older.pair("server")
    assert {owner: pairs.held(older, owner).serial for owner in ("broker", "server")} == {
        owner: identity.serial for owner, identity in made.items()
    }
    assert older.pair("server").stat().st_mode & 0o777 == 0o600
    older.pair("server").unlink()
    (fleet.keys / "server.crt").unlink()
    with pytest.raises(FleetError, match="not a complete fleet"):
        Fleet.open(fleet.path)


@pytest.mark.parametrize(
    ("days", "expected"),
    [
        (0, {}),
        (12, {"snapshot metadata": "soon", "timestamp metadata": "soon"}),
        (340, {"snapshot metadata": "over", "timestamp metadata": "over", "targets metadata": "soon"}),
        (3630, {"broker": "soon", "server": "soon", "root metadata": "over", "targets metadata": "over", "device cam-01": "ok"}),
        (3645, {"broker": "soon", "server": "soon", "device cam-01": "soon"}),
        (7000, {"broker": "over", "server": "over", "intermediate": "soon", "device cam-01": "over"}),
        (10_700, {"intermediate": "over", "root": "soon"}),
    ],
)
def test_everything_that_ends_is_said_before_it_ends(fleet: Fleet, days: int, expected: dict[str, str]) -> None:
    """Certificates of fleet and devices and every role of the metadata: `ok`, then `soon` with a remedy, then `over`."""
    with closing(open_database(fleet.database)) as database:
        found = {one.name: one for one in endings(fleet, database, time.time() + days * DAY)}
    assert {name: found[name].state if name in found else "ok" for name in expected} == expected
    assert all(bool(one.remedy) == (one.state != "ok") for one in found.values())
    if not expected:
        assert {one.state for one in found.values()} == {"ok"}


def test_status_warns_and_says_what_to_do(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    """A server's certificate that ends in a fortnight, and a damaged broker's: in words, and in `--json`."""
    arguments = ["--fleet", str(fleet.path)]
    assert run(["status", *arguments]) == 0
    assert not capsys.readouterr().err
    age(fleet, "server", 86)
    fleet.pair("broker").write_text("nothing of use")
    assert run(["status", *arguments]) == 0
    said = capsys.readouterr().err
    assert "to do: server ends soon. Run `edgefl certificates renew server`." in said
    assert "to do: broker cannot be read." in said
    assert run(["status", "--json", *arguments]) == 0
    warned = json.loads(capsys.readouterr().out)["warnings"]
    assert [(one["name"], one["state"]) for one in warned] == [("broker", "damaged"), ("server", "soon")]
    assert run(["certificates", "ls", "--json", *arguments]) == 0
    assert {one["name"] for one in json.loads(capsys.readouterr().out)} >= {"broker", "server", "intermediate", "root"}


def test_a_damaged_certificate_is_replaced_when_its_life_is_given(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    """Without `--days` nobody knows how long the new one should live, and the error says so."""
    fleet.pair("broker").write_text("nothing of use")
    arguments = ["certificates", "renew", "broker", "--fleet", str(fleet.path)]
    assert run(arguments) == 2
    assert "renew broker --days" in capsys.readouterr().err
    assert run([*arguments, "--days", "90"]) == 4  # no broker runs that could be asked
    assert fits(fleet.pair("broker"))
