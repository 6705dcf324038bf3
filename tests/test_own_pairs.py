"""The broker's and the server's pairs change while a fleet works: nobody is cut off, nothing is lost, and back if it fails."""

import json
import time
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest

from brokerprocess import KINDS
from edgefl.brokers.handshake import is_refused, shown_serial
from edgefl.brokers.wallet import Wallet
from edgefl.cli.main import run
from edgefl.identity.authority import found_authority
from edgefl.link.contract import Arrived, Connected, Event
from edgefl.link.paho import PahoLink
from edgefl.names import BROKER, SERVER
from edgefl.server import pairs
from edgefl.server.own_pair import TRY_SECONDS, OwnPair
from edgefl.store.audit import events
from edgefl.store.database import open_database
from edgefl.store.fleet import Fleet
from fleetpairs import (
    DAY,
    age,
    device_address,
    eventually,
    fits,
    needs_mosquitto,
    process,
    server_link,
    states,
    with_a_device,
)


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """A fleet with the device cam-01, whose bundle lies beside it."""
    return with_a_device(tmp_path)


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


@needs_mosquitto
@pytest.mark.broker
def test_a_broker_whose_certificate_has_ended_starts_with_a_new_one(fleet: Fleet) -> None:
    """A fleet that lay in a drawer for too long works again without a word."""
    age(fleet, "broker", 120)
    with process(fleet, "broker ready", "broker"):
        assert shown_serial(device_address(fleet)) == pairs.held(fleet, "broker").serial
    assert pairs.held(fleet, "broker").ends > time.time()
