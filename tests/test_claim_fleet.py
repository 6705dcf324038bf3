"""Claims and rotation with real processes on a real Mosquitto: `edgefl broker --claims`, `edgefl serve`, `edgefl device run`."""

import json
import os
import secrets
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
from contextlib import ExitStack, closing, contextmanager, suppress

import numpy as np
import paho.mqtt.client as mqtt
import pytest

from edgefl.brokers.mosquitto import find_mosquitto
from edgefl.cli.main import run
from edgefl.device.claimcode import claim_code
from edgefl.device.config import load_bundle
from edgefl.device.identity import open_claim, pair_validity
from edgefl.link.address import BrokerAddress
from edgefl.link.contract import Arrived
from edgefl.link.paho import PahoLink
from edgefl.names import SERVER
from edgefl.server.founding import authority_of, create_fleet
from edgefl.server.provision import provision
from edgefl.server.renewal import ROTATE, RenewalDesk
from edgefl.store.audit import events as audit_events
from edgefl.store.credentials import certificates_of
from edgefl.store.database import open_database
from edgefl.store.fleet import Fleet
from edgefl.store.presence import presences
from edgefl.wire import topics
from edgefl.wire.enrolment import Renewed, RenewRequest
from edgefl.wire.messages import decode, encode
from edgefl.wire.presence import State

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(find_mosquitto() is None, reason="Mosquitto is not installed"),
]


def free_ports():
    """A port that is free, and a pair of neighbours that are."""
    while True:
        with socket.socket() as one, socket.socket() as two, socket.socket() as three:
            one.bind(("127.0.0.1", 0))
            two.bind(("127.0.0.1", 0))
            low = two.getsockname()[1]
            try:
                three.bind(("127.0.0.1", low + 1))
            except OSError:
                continue
            return one.getsockname()[1], low


@contextmanager
def process(directory, name, *arguments):
    """An `edgefl` command with its output in a file, ended afterwards whatever happens."""
    path = directory / f"{name}-{secrets.token_hex(2)}.log"
    environment = {key: value for key, value in os.environ.items() if key not in ("STATE_DIRECTORY", "EDGEFL_DEBUG")}
    environment |= {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with path.open("wb") as log:
        child = subprocess.Popen([sys.executable, "-m", "edgefl", *map(str, arguments)], stdout=log, stderr=log, env=environment)
    child.log = lambda: path.read_text(errors="replace")
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(120)
        finally:
            child.kill()
            child.wait()


def until(condition, seconds=120.0, said=lambda: ""):
    """Wait for something to become true, and give it back."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, said()
        time.sleep(0.05)
    return found


def edgefl(fleet, *arguments):
    """A command that has to succeed."""
    assert run([*map(str, arguments), "--fleet", str(fleet.path)]) == 0


def ask(fleet, question):
    """What the fleet's database says."""
    with closing(open_database(fleet.database)) as database:
        return question(database)


def states(fleet, device):
    """The states of a device's certificates, oldest first."""
    return [one.state for one in ask(fleet, lambda database: certificates_of(database, device))]


def events(fleet, device):
    """The kinds of event in a device's audit log."""
    return [one.event for one in ask(fleet, lambda database: audit_events(database, device))]


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A fleet with its broker, claim broker and server; and where things may be put."""
    root = tmp_path_factory.mktemp("claims")
    port, claim_port = free_ports()
    fleet = create_fleet(root / "farm", name="farm", port=port, claim_port=claim_port)
    np.savez(root / "examples.npz", x=np.zeros((4, 3), np.float32), y=np.zeros(4, np.int64))
    with ExitStack() as stack:
        broker = stack.enter_context(process(root, "broker", "broker", "--claims", "--fleet", fleet.path))
        until(lambda: "claims welcome" in broker.log(), said=broker.log)
        server = stack.enter_context(process(root, "server", "serve", "--fleet", fleet.path))
        until(lambda: "serving fleet" in server.log(), said=server.log)
        yield fleet, root, broker, server


@pytest.fixture
def fleet(running) -> Fleet:
    """The running fleet."""
    return running[0]


@pytest.fixture
def claimed(running, request, capsys):
    """Provisions this test's own board with a claim; its bundle."""
    fleet, root, *_ = running
    device = request.node.name.removeprefix("test_").replace("_", "-")[:30].strip("-")
    source = f"npz:{root / 'examples.npz'}"
    edgefl(fleet, "provision", device, "--claim", "--profile", "rpi-zero-2w", "--out", root / "out", "--data", source)
    capsys.readouterr()
    return root / "out" / device


def board(running, bundle):
    """The agent of a board."""
    return process(running[1], bundle.name, "device", "run", bundle)


def test_a_board_claims_and_joins(running, fleet, claimed):
    """From a bundle without a key to an online device: its own key, mode 0600, an active certificate, and no token left."""
    device = claimed.name
    assert not {"device.key", "device.crt"} & {path.name for path in claimed.iterdir()}
    with board(running, claimed) as agent:
        until(lambda: device in (known := ask(fleet, presences)) and known[device].online, said=agent.log)
        until(lambda: states(fleet, device) == ["active"], said=agent.log)
    assert events(fleet, device) == ["claim-opened", "certificate-issued", "certificate-active"]
    pair = claimed / "state" / "device.pem"
    assert stat.S_IMODE(pair.stat().st_mode) == 0o600
    assert not (claimed / "claim.toml").exists()
    assert not list((claimed / "state").glob("draft-*"))
    found = pair_validity(load_bundle(claimed))
    assert found.name == device
    assert round((found.ends - found.begins) / 86400) == fleet.settings.device_days + 1


def test_rotation_leaves_no_gap(running, fleet, claimed, capsys):
    """Asked to rotate, a device comes back with a new key; the server never sees it offline, and the old one is replaced."""
    device = claimed.name
    with board(running, claimed) as agent:
        until(lambda: states(fleet, device) == ["active"] and device in ask(fleet, presences), said=agent.log)
        before = pair_validity(load_bundle(claimed)).serial
        key = (claimed / "state" / "device.pem").read_bytes().partition(b"-----BEGIN CERTIFICATE")[0]
        edgefl(fleet, "devices", "rotate", device)
        seen = []
        until(
            lambda: seen.append(ask(fleet, presences)[device]) or states(fleet, device) == ["replaced", "active"], said=agent.log
        )
        time.sleep(0.7)  # the server writes down what it has heard twice a second
        seen.append(ask(fleet, presences)[device])
        assert all(one.online for one in seen)
        assert len({one.session for one in (known.state for known in seen)}) == 1
        assert agent.poll() is None
    assert pair_validity(load_bundle(claimed)).serial != before
    assert not (claimed / "state" / "device.pem").read_bytes().startswith(key)
    assert not (claimed / "state" / "device.previous.pem").exists()
    capsys.readouterr()
    edgefl(fleet, "devices", "audit", device, "--json")
    told = [event["event"] for event in json.loads(capsys.readouterr().out)]
    assert told[-4:] == ["rotation-asked", "certificate-issued", "certificate-replaced", "certificate-active"]


def test_rotation_is_no_death(tmp_path):
    """What a server hears during a rotation: births of one session and never a death."""
    port, _ = free_ports()
    fleet = create_fleet(tmp_path / "farm", name="farm", port=port)
    np.savez(tmp_path / "examples.npz", x=np.zeros((4, 3), np.float32), y=np.zeros(4, np.int64))
    provision(fleet, ["cam-01"], "rpi-zero-2w", tmp_path, data=f"npz:{tmp_path / 'examples.npz'}")
    address = BrokerAddress("127.0.0.1", port, fleet.root_certificate, fleet.server_certificate, fleet.server_key)
    with (
        closing(open_database(fleet.database)) as database,
        process(tmp_path, "broker", "broker", "--fleet", fleet.path) as broker,
    ):
        until(lambda: "broker ready" in broker.log(), said=broker.log)
        desk, link, heard = RenewalDesk(database, authority_of(fleet), 90, time.time), PahoLink(address, SERVER), []
        link.subscribe(topics.ALL_UP)
        link.connect()
        with process(tmp_path, "cam-01", "device", "run", tmp_path / "cam-01") as agent:
            for rotations in range(4):
                if rotations:
                    link.publish(topics.certificate("cam-01"), encode(Renewed(code=ROTATE)))
                until(lambda least=rotations: serve(link, desk, heard) and len(set(used(heard))) > least, said=agent.log)
            states = [decode(payload, State) for topic, payload in heard if topic == topics.state("cam-01")]
        link.close()
        assert all(state.online for state in states)
        assert len({state.session for state in states}) == 1
        assert [one.state for one in certificates_of(database, "cam-01")] == ["replaced"] * 3 + ["active"]


def serve(link, desk, heard):
    """Play the server for a moment: hear everything, answer renewals."""
    for event in link.poll(0.1):
        if isinstance(event, Arrived):
            heard.append((event.topic, event.payload))
            answer = desk.heard("cam-01", event.payload) if event.topic == topics.renew("cam-01") else None
            if answer is not None:
                link.publish(topics.certificate("cam-01"), encode(answer))
    return True


def used(heard):
    """The certificates that the device has said it uses."""
    renewals = [decode(payload, RenewRequest) for topic, payload in heard if topic == topics.renew("cam-01")]
    return [request.using for request in renewals if not request.csr]


def test_a_label_is_enough(running, fleet, claimed):
    """A board whose bundle lost its claim claims with the text of the label's code."""
    code = claim_code("farm", claimed.name, open_claim(load_bundle(claimed)))
    (claimed / "claim.toml").unlink()
    (claimed / "code").write_text(f"{code}\n")
    with process(running[1], claimed.name, "device", "claim", claimed, "--code", claimed / "code") as agent:
        assert agent.wait(120) == 0, agent.log()
    assert states(fleet, claimed.name) == ["pending"]


def test_a_killed_claim_is_finished_by_the_next_start(running, fleet, claimed):
    """Killed while it waits for a server that is away, a board goes on with the same key, and one certificate is given out."""
    device = claimed.name
    running[3].send_signal(signal.SIGSTOP)
    try:
        with board(running, claimed) as agent:
            until(lambda: list((claimed / "state").glob("draft-*")), said=agent.log)
            drafted = next((claimed / "state").glob("draft-*")).read_bytes()
            agent.kill()
            agent.wait()
    finally:
        running[3].send_signal(signal.SIGCONT)
    command = process(running[1], device, "device", "claim", claimed)
    with command as agent:
        assert agent.wait(120) == 0, agent.log()
        assert "has its certificate" in agent.log()
    key = (claimed / "state" / "device.pem").read_bytes().partition(b"-----BEGIN CERTIFICATE")[0]
    assert key in drafted
    assert states(fleet, device) == ["pending"]


def test_a_copied_claim_is_refused(running, fleet, claimed):
    """A second board with the same bundle is told so, exits with code 2, and the audit log names the reason."""
    device = claimed.name
    copy = claimed.with_name(f"copy-{device}")
    subprocess.run(["cp", "-r", claimed, copy], check=True)
    with process(running[1], device, "device", "claim", claimed) as first:
        assert first.wait(120) == 0, first.log()
    with board(running, copy) as second:
        assert second.wait(120) == 2, second.log()
        assert "refuses this board's claim (used)" in second.log()
    refused = [one for one in ask(fleet, lambda database: audit_events(database, device)) if one.event == "claim-refused"]
    assert refused
    assert all(one.detail.startswith("used: ") for one in refused)


def anonymous(fleet, name, **options):
    """A client without a certificate; what it has received."""
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, name, **options)
    client.tls_set_context(ssl.create_default_context(cafile=str(fleet.root_certificate)))
    client.got, client.up = [], []
    client.on_message = lambda _c, _u, message: client.got.append((message.topic, message.payload))
    client.on_connect = lambda *_: client.up.append(True)
    client.reconnect_delay_set(60, 60)
    return client


def start(client, port):
    """Connect, and wait for it."""
    client.connect("127.0.0.1", port)
    client.loop_start()
    until(lambda: client.up)


def test_a_stranger_can_only_ask(running, fleet, claimed):
    """Without a certificate a client reaches its two claim topics and nothing else, whatever name it gives itself."""
    port = fleet.settings.claim_port
    strangers = [anonymous(fleet, name) for name in ("spy", SERVER, "+", "#", "+/reply/", "spy/request")]
    thief = strangers[1]
    thief.username_pw_set(SERVER, "anything")
    try:
        for client in strangers:
            start(client, port)
            for topic in ("#", "efl/v1/#", "efl/v1/claim/+/request", "efl/v1/claim/+/reply", "efl/v1/claim/+/reply//reply"):
                client.subscribe(topic, 1)
        thief.publish("efl/v1/claim/spy/reply", b"forged", 1)
        thief.publish("efl/v1/claim/spy/request", b"as somebody else", 1)
        with process(running[1], claimed.name, "device", "claim", claimed) as agent:
            assert agent.wait(120) == 0, agent.log()
    finally:
        for client in strangers:
            client.disconnect()
            client.loop_stop()
    assert "no connection to the broker" not in running[3].log()  # nobody has taken the server's place
    assert [client.got for client in strangers] == [[]] * len(strangers)


def test_the_claim_ports_open_nothing_else(fleet):
    """The fleet's port still takes no client without a certificate, and neither does the server's port of the claim broker."""
    for port in (fleet.settings.port, fleet.settings.claim_server_port):
        client = anonymous(fleet, "spy")
        with suppress(OSError):
            client.connect("127.0.0.1", port)
            for _ in range(20):
                client.loop(0.05)
        assert not client.up
        client.disconnect()


def test_an_oversize_request_ends_nobody_but_itself(running, fleet, claimed):
    """A packet above the claim broker's limit does not reach the server, and others can still claim."""
    client = anonymous(fleet, "fat")
    start(client, fleet.settings.claim_port)
    try:
        client.publish(topics.claim_request("fat"), bytes(60_000), 0)
        with process(running[1], claimed.name, "device", "claim", claimed) as agent:
            assert agent.wait(120) == 0, agent.log()
    finally:
        client.disconnect()
        client.loop_stop()


def test_the_embedded_broker_says_that_it_takes_no_claims(fleet, capsys):
    """`--claims` with the embedded broker ends at once with a message that says what to do."""
    assert run(["broker", "--claims", "--broker", "embedded", "--fleet", str(fleet.path)]) == 4
    assert "takes no claims" in capsys.readouterr().err


def test_the_fleets_broker_survives_the_claim_broker(tmp_path):
    """When the claim broker is killed, the fleet's goes on and says what happened."""
    port, claim_port = free_ports()
    fleet = create_fleet(tmp_path / "farm", name="farm", port=port, claim_port=claim_port)
    with process(tmp_path, "broker", "broker", "--claims", "--fleet", fleet.path) as broker:
        until(lambda: all(word in broker.log() for word in ("claims welcome", "broker ready")), said=broker.log)
        listing = subprocess.run(
            ["ps", "-ww", "--ppid", str(broker.pid), "-o", "pid=,args="], capture_output=True, text=True, check=True
        )
        (line,) = [line for line in listing.stdout.splitlines() if "broker/claims" in line]
        os.kill(int(line.split()[0]), signal.SIGKILL)
        until(lambda: "no more claims" in broker.log(), said=broker.log)
        assert broker.poll() is None
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass
