import datetime as dt
import json
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from edgefl.brokers.checks.admission import check_list
from edgefl.brokers.checks.finding import Finding
from edgefl.brokers.checks.run import MEMBERS, STRANGERS, check_broker
from edgefl.brokers.checks.scene import Scene
from edgefl.brokers.listener import Listener, wait_ready
from edgefl.brokers.mosquitto import find_mosquitto, write_configuration
from edgefl.brokers.revoked import crl_path, write_list
from edgefl.brokers.running import announce_process, only_broker
from edgefl.brokers.wallet import Wallet
from edgefl.cli.main import run
from edgefl.errors import LinkError
from edgefl.identity.crl import sign_crl
from edgefl.server.founding import authority_of, create_fleet
from edgefl.store.fleet import Fleet

needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="Mosquitto is not installed")
ACCESS = {"foreign publish", "server's topics", "foreign subscription", "foreign retained", "foreign will"}
STRANGE = {name for name, _ in STRANGERS}

Change = Callable[[str], str]


def without(*settings: str) -> Change:
    """A configuration that lacks these settings."""
    return lambda text: "\n".join(line for line in text.splitlines() if line.split(" ")[0] not in settings) + "\n"


def instead(setting: str, value: str) -> Change:
    """A configuration in which a setting is another."""
    return lambda text: re.sub(rf"^{setting} .*$", f"{setting} {value}", text, flags=re.MULTILINE)


def also(*lines: str) -> Change:
    """A configuration with more settings."""
    return lambda text: text + "\n".join(lines) + "\n"


def all_of(*changes: Change) -> Change:
    """One change after the other."""

    def change(text: str) -> str:
        for step in changes:
            text = step(text)
        return text

    return change


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """A fleet without devices, with its first list of revoked certificates."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    fleet = create_fleet(tmp_path / "farm", name="farm", port=port)
    write_list(fleet.broker, authority_of(fleet), {}, 0.0)
    return fleet


def listener_for(fleet: Fleet, bind: str) -> Listener:
    """Where the fleet's broker listens."""
    keys = (fleet.root_certificate, fleet.broker_certificate, fleet.broker_key)
    return Listener(fleet.broker, *keys, fleet.settings.port, bind, crl_path(fleet.broker))


@contextmanager
def mosquitto(fleet: Fleet, change: Change = lambda text: text, bind: str = "127.0.0.1") -> Iterator[None]:
    """Mosquitto with the fleet's configuration after a change, for as long as the block lasts."""
    listener = listener_for(fleet, bind)
    path = write_configuration(listener)
    path.write_text(change(path.read_text()))
    with (fleet.broker / "log").open("w") as log, only_broker(fleet.broker, "mosquitto"):
        process = subprocess.Popen([str(find_mosquitto()), "-c", str(path)], stdout=log, stderr=log)
        try:
            announce_process(listener, "mosquitto", process.pid)
            wait_ready(listener, lambda: None)
            yield
        finally:
            process.terminate()
            process.wait(120)


def look(fleet: Fleet, host: str = "127.0.0.1") -> dict[str, Finding]:
    """Every finding by the name of its check."""
    with Wallet(host, fleet.settings.port, fleet.root_certificate) as wallet:
        scene = Scene(host, fleet.settings.port, authority_of(fleet), fleet.broker, wallet)
        return {finding.name: finding for finding in check_broker(scene, ())}


def failing(findings: dict[str, Finding]) -> set[str]:
    """Names of the checks that failed."""
    return {name for name, finding in findings.items() if finding.state == "failed"}


@needs_mosquitto
@pytest.mark.broker
@pytest.mark.parametrize("limit", ["message_size_limit", "max_packet_size"])
def test_the_fleets_own_configuration_passes_every_check(fleet: Fleet, limit: str) -> None:
    """Nothing fails and nothing is left unchecked; a broker that disconnects for a large packet, as 2.1 does, is as good."""
    with mosquitto(fleet, lambda text: text.replace("message_size_limit 131072", f"{limit} 131200")):
        findings = look(fleet)
    assert {finding.state for finding in findings.values()} == {"ok"}
    assert set(findings) >= STRANGE | ACCESS | {name for name, _ in MEMBERS}


MISTAKES: dict[str, tuple[Change, set[str]]] = {
    "no list of revoked certificates": (without("crlfile"), {"revoked certificate"}),
    "no binding of client ids": (without("use_username_as_clientid"), {"client id"}),
    "no access rules": (all_of(without("acl_file"), instead("sys_interval", "1")), {*ACCESS, "$SYS"}),
    "no size limit": (without("message_size_limit"), {"packet limit"}),
    "too small a size limit": (instead("message_size_limit", "100000"), {"packet limit"}),
    "no persistence": (instead("persistence", "false"), {"persistence"}),
    "rare saving": (without("autosave_interval"), {"persistence"}),
    "no retained messages": (also("retain_available false"), {"kept messages"}),
    "old TLS": (all_of(instead("tls_version", "tlsv1.1"), also("ciphers ALL:@SECLEVEL=0")), {"tls version"}),
}


@needs_mosquitto
@pytest.mark.broker
@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_fails_its_check_and_no_other(fleet: Fleet, mistake: str) -> None:
    """A Mosquitto with one wrong setting: exactly the checks that it concerns fail, and say what to do."""
    change, expected = MISTAKES[mistake]
    with mosquitto(fleet, change):
        findings = look(fleet)
    assert failing(findings) == expected
    assert all(findings[name].remedy for name in expected)


@needs_mosquitto
@pytest.mark.broker
def test_an_open_door_fails_every_check_of_strangers(fleet: Fleet) -> None:
    """A broker that asks for no certificate lets everybody in, and each of them is named."""
    change = all_of(
        instead("require_certificate", "false"),
        instead("allow_anonymous", "true"),
        without("use_identity_as_username", "use_username_as_clientid", "crlfile", "acl_file"),
    )
    with mosquitto(fleet, change):
        assert failing(look(fleet)) == {*STRANGE, *ACCESS, "client id"}


@needs_mosquitto
@pytest.mark.broker
@pytest.mark.slow
@pytest.mark.parametrize(
    ("rules", "failed"),
    [
        ("user edgefl-check\ntopic readwrite efl/v1/#\n", {"own topics"}),
        ("user edgefl-server\ntopic readwrite efl/v1/#\n", set()),
    ],
)
def test_silence_proves_nothing(fleet: Fleet, rules: str, failed: set[str]) -> None:
    """When a device or the observer can do nothing at all, the attacks are not reported as repelled."""

    def change(text: str) -> str:
        (fleet.broker / "acl").write_text(rules)
        return text

    with mosquitto(fleet, change):
        findings = look(fleet)
    assert failing(findings) == failed
    assert {findings[name].state for name, _ in MEMBERS} == {"not checked"}


@needs_mosquitto
@pytest.mark.broker
def test_a_broker_of_another_fleet_is_not_praised_for_refusing(fleet: Fleet, tmp_path: Path) -> None:
    """It refuses everybody, also whom it should let in: its certificate fails, and no refusal counts."""
    other = create_fleet(tmp_path / "other", name="other", port=fleet.settings.port)
    write_list(other.broker, authority_of(other), {}, 0.0)
    with mosquitto(other):
        findings = look(fleet)
    assert failing(findings) == {"broker certificate", "valid certificate"}
    assert {findings[name].state for name in STRANGE} == {"not checked"}
    assert findings["persistence"].state == "not checked"


@needs_mosquitto
@pytest.mark.broker
@pytest.mark.parametrize("fault", ["ends soon", "names another host"])
def test_the_brokers_certificate_is_looked_at(fleet: Fleet, fault: str) -> None:
    """A certificate that ends in three weeks, or that does not name the host by which devices reach it."""
    if fault == "ends soon":
        broker = authority_of(fleet).broker(now=dt.datetime.now(dt.UTC) - dt.timedelta(days=10 * 365 - 21))
        fleet.pair("broker").write_bytes(broker.key + broker.certificate)
    host = "127.0.0.1" if fault == "ends soon" else "127.0.0.2"
    with mosquitto(fleet, bind=host):
        findings = look(fleet, host)
    assert failing(findings) >= {"broker certificate"}


def test_nothing_there_is_said_in_words(fleet: Fleet) -> None:
    """A closed port is an error of this machine, not a row of passed checks."""
    with pytest.raises(LinkError, match="cannot reach a broker"):
        look(fleet)


@pytest.mark.parametrize("fault", ["none", "ends soon", "of another fleet", "garbage", "incomplete"])
def test_the_list_itself_is_looked_at(fleet: Fleet, tmp_path: Path, fault: str) -> None:
    """A list that is missing, damaged, foreign, too old or incomplete fails before it locks anybody out."""
    authority, path = authority_of(fleet), crl_path(fleet.broker)
    match fault:
        case "none":
            path.unlink()
        case "ends soon":
            path.write_bytes(sign_crl(authority, {}, days=20))
        case "of another fleet":
            path.write_bytes(sign_crl(authority_of(create_fleet(tmp_path / "x", name="farm")), {}))
        case "garbage":
            path.write_bytes(path.read_bytes()[:-40])
        case "incomplete":
            path.write_bytes(sign_crl(authority, {1: 0.0}))
    with Wallet("127.0.0.1", 1, fleet.root_certificate) as wallet:
        finding = check_list(Scene("127.0.0.1", 1, authority, fleet.broker, wallet), [1, 2])
    assert finding.state == "failed"
    assert "edgefl broker configure" in finding.remedy


@pytest.mark.broker
@pytest.mark.skipif(find_spec("amqtt") is None, reason="amqtt is not installed")
def test_the_embedded_broker_fails_where_it_is_said_to(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    """It withstands the same attacks, and keeps nothing over a restart; the command's exit code is 4."""
    import sys

    command = [sys.executable, "-m", "edgefl", "broker", "--broker", "embedded", "--fleet", str(fleet.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "ready" in process.stdout.readline()
        try:
            code = run(["broker", "check", "--fleet", str(fleet.path), "--json"])
        finally:
            process.terminate()
    findings = json.loads(capsys.readouterr().out)
    assert code == 4
    assert [finding["name"] for finding in findings if finding["state"] == "failed"] == ["persistence"]
    assert not [finding for finding in findings if finding["state"] == "not checked"]


@needs_mosquitto
@pytest.mark.broker
def test_the_command_prints_a_table_and_ends_with_0(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    """One line for each check; a remedy below what failed."""
    with mosquitto(fleet):
        assert run(["broker", "check", "--fleet", str(fleet.path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7 + 1 + len(STRANGERS) - 1 + len(MEMBERS)
    assert all(re.match(r"\S.{20} ok ", line) for line in lines)
