"""The steps of a revocation: what is done without a broker, with another's, and what is said and written down."""

import contextlib
import json
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from camerafleet import client, eventually, is_admitted, needs_mosquitto, two_cameras
from edgefl.brokers.mosquitto import find_mosquitto
from edgefl.brokers.revoked import crl_path, current_list
from edgefl.brokers.running import only_broker, running_broker
from edgefl.cli.main import run
from edgefl.errors import BrokerError, FleetError
from edgefl.server.founding import authority_of
from edgefl.store.audit import events, record
from edgefl.store.database import open_database
from edgefl.store.fleet import Fleet
from edgefl.store.registry import get_device
from edgefl.store.revocations import revoke, revoked_devices, revoked_serials


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """A fleet with cam-01 and cam-02, whose bundles lie beside it, on a free port."""
    return two_cameras(tmp_path)


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
