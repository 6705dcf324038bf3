"""The broker's and the server's pairs as files and as rows: when they are renewed, what they name, and that one always works."""

import time
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from edgefl.brokers.running import only_broker
from edgefl.errors import FleetError, StoreError
from edgefl.link.contract import Connected, Message
from edgefl.link.memory import MemoryLink
from edgefl.link.memory_broker import MemoryBroker
from edgefl.names import SERVER
from edgefl.server import pairs
from edgefl.server.founding import authority_of
from edgefl.server.own_pair import OwnPair
from edgefl.store.database import open_database
from edgefl.store.fleet import Fleet
from fleetpairs import DAY, age, eventually, fits, states, with_a_device


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """A fleet with the device cam-01, whose bundle lies beside it."""
    return with_a_device(tmp_path)


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
