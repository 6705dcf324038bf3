"""What an operator does, from the first push to the last revocation: real commands, real processes, a real Mosquitto.

Each test runs a fleet of its own, copied from one that was founded and pushed to once. What the broker itself keeps is looked at
in the server's place, with the server's certificate, after the server has been stopped.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, closing, contextmanager

import numpy as np
import pytest

from edgefl.brokers.mosquitto import find_mosquitto
from edgefl.cli.main import run
from edgefl.identity.signing import ASSIGNMENT, Signer
from edgefl.link.address import BrokerAddress
from edgefl.link.probe import Probe
from edgefl.names import SERVER
from edgefl.server.rollout_status import rollout_statuses
from edgefl.store.database import open_database
from edgefl.store.fleet import Fleet
from edgefl.store.presence import presences
from edgefl.wire import topics
from edgefl.wire.messages import decode, encode
from edgefl.wire.presence import Report
from edgefl.wire.releases import Assigned, Assignment

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.broker,
    pytest.mark.skipif(find_mosquitto() is None, reason="Mosquitto is not installed"),
]
NAMES = ["cam-01", "cam-02", "cam-03"]
PROFILE = "rpi-zero-2w"
FACTORY = """
from torch import nn


class Tiny(nn.Sequential):
    input_shape = (8,)


def make():
    return Tiny(nn.Linear(8, 1024), nn.ReLU(), nn.Linear(1024, 3))
"""
FILES = 48_000
"""Bytes of a version's files, at least: 12,291 weights."""
QUICK = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def two_free_ports():
    """Ports of the broker and of the claim broker, whose server's port is the next one."""
    while True:
        with socket.socket() as one, socket.socket() as two, socket.socket() as three:
            one.bind(("127.0.0.1", 0))
            two.bind(("127.0.0.1", 0))
            try:
                three.bind(("127.0.0.1", two.getsockname()[1] + 1))
            except (OSError, OverflowError):
                continue
            return one.getsockname()[1], two.getsockname()[1]


def weights(directory):
    """Examples that can be told apart, two sets of weights that do so (`good`, `other`), and one that guesses (`bad`)."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((600, 8)).astype(np.float32)
    y = (x @ rng.standard_normal((8, 3))).argmax(1)
    np.savez(directory / "data.npz", x=x, y=y)
    for name, seed, steps in (("good", 1, 150), ("other", 2, 150), ("bad", 3, 0)):
        torch.manual_seed(seed)
        model = torch.nn.Sequential(torch.nn.Linear(8, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 3))
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(steps):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(torch.tensor(x)), torch.tensor(y)).backward()
            optimizer.step()
        torch.save(model.state_dict(), directory / f"{name}.pt")


def push_words(place, name, *more):
    """`edgefl push` of these weights."""
    return ["push", "operators_tiny:make", "--name", "tiny", "--weights", str(place / f"{name}.pt"), *more]


@pytest.fixture(scope="module")
def founded(tmp_path_factory):
    """A fleet of three boards with version 1 as the release."""
    place = tmp_path_factory.mktemp("operator")
    (place / "operators_tiny.py").write_text(FACTORY)
    weights(place)
    port, claim_port = two_free_ports()
    farm = str(place / "farm")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert run(["init", farm, "--port", str(port), "--claim-port", str(claim_port)]) == 0
        words = ["--count", "3", "--profile", PROFILE, "--data", f"npz:{place / 'data.npz'}", "--out", str(place / "bundles")]
        assert run(["provision", "cam", *words, "--fleet", farm]) == 0
        assert run([*push_words(place, "good"), "--fleet", farm]) == 0
    return place


class Operator:
    """Somebody at a terminal: starts processes, gives orders, looks at what comes of them."""

    def __init__(self, place, stack):
        """In this directory; the stack ends what was started."""
        self.place, self.fleet = place, Fleet.open(place / "farm")
        self._stack = stack
        self._running = {}

    def start(self, name, *words, ready):
        """Start a command that stays, and wait until its log says that it is ready."""
        log = self.place / f"{name}.log"
        seen = log.stat().st_size if log.exists() else 0
        with log.open("ab") as out:
            command = [sys.executable, "-m", "edgefl", *words]
            process = subprocess.Popen(command, stdout=out, stderr=out, cwd=self.place, env={**os.environ, **QUICK})
        self._stack.callback(stop, process)
        self._running[name] = process
        until(lambda: ready in log.read_text()[seen:] or process.poll() is not None, lambda: self.log(name))
        assert process.poll() is None, self.log(name)

    def begin(self, *broker_options):
        """The broker, and the server."""
        self.start("broker", "broker", *broker_options, "--fleet", "farm", ready="broker ready")
        self.start("server", "serve", "--fleet", "farm", ready="serving fleet")

    def boards(self, *names):
        """Start boards."""
        for name in names:
            self.start(name, "device", "run", str(self.place / "bundles" / name), ready="connected")

    def stop(self, name):
        """Ask a process to end."""
        stop(self._running.pop(name))

    def say(self, *words, code=0):
        """A command that ends; what it printed."""
        command = [sys.executable, "-m", "edgefl", *words, "--fleet", "farm"]
        done = subprocess.run(command, cwd=self.place, capture_output=True, text=True, check=False, env={**os.environ, **QUICK})
        assert done.returncode == code, done.stderr
        return done.stdout

    def log(self, name):
        """What a process has said."""
        return (self.place / f"{name}.log").read_text()

    def logs(self):
        """What everybody has said lately."""
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.place.glob("*.log")))

    def until(self, reached, seconds=120.0):
        """Wait until something has happened."""
        return until(reached, self.logs, seconds)

    def rows(self, sql, *values):
        """Rows of the fleet's database."""
        with closing(open_database(self.fleet.database)) as database:
            return [tuple(row) for row in database.execute(sql, values)]

    def rollout(self):
        """The newest rollout, as `status --json` shows it; read without a process of its own."""
        with closing(open_database(self.fleet.database)) as database:
            (one,) = rollout_statuses(database, "tiny")
        return one

    @contextmanager
    def in_the_servers_place(self, topic):
        """A connection as the server, which must have been stopped; hears everything on a topic, retained messages first."""
        files = self.fleet.root_certificate, self.fleet.server_certificate, self.fleet.server_key
        with Probe(BrokerAddress("127.0.0.1", self.fleet.settings.port, *files), SERVER) as probe:
            assert probe.accepted, probe.reason
            assert probe.subscribe(topic)
            yield probe

    def held(self):
        """The versions that each board says to hold, as far as the server has heard."""
        with closing(open_database(self.fleet.database)) as database:
            return {name: [one.version for one in known.state.models] for name, known in presences(database).items()}

    def sent(self):
        """Payload bytes that the server has sent."""
        return sum(value for (value,) in self.rows("SELECT value FROM counters WHERE name LIKE 'downlink%'"))

    def all_hold(self, version, *names):
        """Wait until all boards hold a version."""
        self.until(lambda: all(self.held().get(name) == [version] for name in names or NAMES))


def stop(process):
    """End a process."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(120)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def until(reached, words, seconds=120.0):
    """Wait until something has happened; what that was."""
    deadline = time.monotonic() + seconds
    while not (found := reached()):
        assert time.monotonic() < deadline, words()
        time.sleep(0.05)
    return found


@pytest.fixture
def operator(founded, tmp_path):
    """An operator with a fresh copy of the fleet."""
    place = shutil.copytree(founded, tmp_path / "work")
    with ExitStack() as stack:
        yield Operator(place, stack)


def reports(probe):
    """The reports that a listener has heard: device and what it said."""
    return [(m.topic.split("/")[3], decode(m.payload, Report)) for m in probe.heard if m.topic.endswith("/report")]


def test_a_version_goes_out_by_stages_and_back_at_once(operator):
    """Push, canary, all, and a rollback after which every board has the old version again without having fetched a byte."""
    operator.begin()
    operator.boards(*NAMES)
    operator.all_hold(1)
    assert "held back" in operator.say(*push_words(operator.place, "other", "--hold"))
    before = operator.sent()
    started = json.loads(operator.say("rollout", "start", "tiny@2", "--stages", "1,100%", "--json"))
    (canary,) = [one["id"] for one in started["devices"] if one["step"] == "told"]
    operator.until(lambda: operator.rollout().state == "finished")
    (status,) = json.loads(operator.say("rollout", "status", "--json"))
    by_name = {one["id"]: one for one in status["devices"]}
    assert {name: (one["step"], one["percent"]) for name, one in by_name.items()} == dict.fromkeys(NAMES, ("activated", 100))
    assert {name for name, one in by_name.items() if one["stage"] == 1} == {canary}
    assert all(one["fetched_bytes"] == one["total_bytes"] > FILES for one in status["devices"])
    operator.all_hold(2)
    middle = operator.sent()
    operator.say("rollback", "tiny")
    operator.all_hold(1)
    assert middle - before > FILES / 2  # a difference at the least
    assert operator.sent() - middle < FILES / 5  # assignments and a manifest


def test_a_bad_version_stops_with_its_canary(operator):
    """The canary finds the version worse and keeps the old one; the rollout pauses; no other board ever hears of it."""
    operator.begin()
    operator.boards(*NAMES)
    operator.all_hold(1)
    operator.say(*push_words(operator.place, "bad", "--hold", "--drop", "0.05"))
    started = json.loads(operator.say("rollout", "start", "tiny@2", "--stages", "1,100%", "--json"))
    (canary,) = [one["id"] for one in started["devices"] if one["step"] == "told"]
    operator.until(lambda: operator.rollout().state == "paused")
    (status,) = json.loads(operator.say("rollout", "status", "--json"))
    by_name = {one["id"]: one for one in status["devices"]}
    assert (by_name[canary]["step"], by_name[canary]["code"]) == ("reverted", "trial-metric")
    assert "accuracy" in by_name[canary]["error"]
    assert {one["step"] for name, one in by_name.items() if name != canary} == {"waiting"}
    assert f"{canary}" in operator.say("rollout", "status")
    operator.all_hold(1)
    assigned = dict(operator.rows("SELECT device, counter FROM assignments"))
    assert assigned == {name: 3 if name == canary else 1 for name in NAMES}  # there and back; never anything new
    assert not any("tiny@2" in operator.log(name) for name in NAMES if name != canary)


def test_a_replaced_online_key_is_followed_and_the_old_one_is_worth_nothing(operator):
    """Boards follow `keys rotate online` by themselves, train under the new key, and name a forgery with the stolen one."""
    operator.begin()
    operator.boards(*NAMES)
    operator.all_hold(1)
    stolen = Signer.from_pem((operator.fleet.keys / "online.key").read_bytes())
    operator.say("keys", "rotate", "online")
    operator.until(lambda: "online key was replaced" in operator.log("server"))
    operator.stop("server")
    operator.start("server", "serve", "--fleet", "farm", ready="serving fleet")
    operator.say("train", "start", "tiny", "--rounds", "1", "--epochs", "1")
    operator.until(lambda: operator.rows("SELECT state FROM trainings") == [("finished",)])
    assert operator.rows("SELECT COUNT(*) FROM updates WHERE counted=1") == [(3,)]
    now = int(time.time())
    forged = Assignment("cam-02", 1000, now, now + 3600, (Assigned("tiny", 7),))
    operator.stop("server")
    with operator.in_the_servers_place(topics.report("cam-02")) as probe:
        probe.publish(topics.assignment("cam-02"), encode(stolen.sign(ASSIGNMENT, encode(forged))), retain=True)
        operator.until(lambda: probe.wait(0.05) or [one for _, one in reports(probe) if one.code == "signature"])
        assert not [one for _, one in reports(probe) if one.version == 7]


def test_a_board_claims_changes_its_certificate_and_is_thrown_out(operator):
    """A claimed board gets the version, a new certificate in its old session, and is gone with all its traces when revoked."""
    words = ("--profile", PROFILE, "--data", f"npz:{operator.place / 'data.npz'}", "--out", "bundles", "--claim")
    operator.say("provision", "late-01", *words)
    operator.begin("--claims")
    operator.boards("late-01")
    operator.all_hold(1, "late-01")

    def session():
        return (operator.place / "bundles" / "late-01" / "state" / "session").read_text()

    before = operator.rows("SELECT certificate FROM devices WHERE id='late-01'"), session()
    operator.say("devices", "rotate", "late-01")
    operator.until(lambda: "certificate-replaced" in operator.say("devices", "audit", "late-01", "--json"))
    after = operator.rows("SELECT certificate FROM devices WHERE id='late-01'"), session()
    assert before[0] != after[0]
    assert before[1] == after[1]
    connections = operator.log("late-01").count("INFO connected")
    began = time.monotonic()
    revoked = json.loads(operator.say("devices", "revoke", "late-01", "--json"))
    assert revoked["complete"]
    assert time.monotonic() - began < 60.0
    operator.until(lambda: len(re.findall(r"no connection", operator.log("late-01"))) >= 2)
    assert operator.log("late-01").count("INFO connected") == connections
    time.sleep(1.5)  # the server looks twice a second whom it may speak to
    operator.stop("server")
    with operator.in_the_servers_place("efl/v1/+/late-01/#") as probe:
        probe.wait(0.5)
        assert not [message for message in probe.heard if message.payload]


def test_training_goes_on_while_the_next_version_rolls_out(operator):
    """Boards with version 1 train it until version 2 is the release; then that ends, and the next training is of version 2."""
    operator.begin()
    operator.boards(*NAMES)
    operator.all_hold(1)
    plan = ("--rounds", "2000", "--epochs", "1", "--cohort", "2", "--quorum", "1", "--deadline", "3")
    operator.say("train", "start", "tiny", *plan)
    operator.until(lambda: operator.rows("SELECT MAX(round) FROM rounds WHERE closed IS NOT NULL")[0][0])
    operator.say(*push_words(operator.place, "other", "--hold"))
    started = json.loads(operator.say("rollout", "start", "tiny@2", "--stages", "1,100%", "--approve", "--json"))
    (canary,) = [one["id"] for one in started["devices"] if one["step"] == "told"]
    operator.until(lambda: operator.rollout().state == "waiting")
    ((closed,),) = operator.rows("SELECT MAX(round) FROM rounds WHERE closed IS NOT NULL")
    operator.until(lambda: operator.rows("SELECT MAX(round) FROM rounds WHERE closed IS NOT NULL")[0][0] >= closed + 2)
    late = operator.rows("SELECT DISTINCT device FROM updates WHERE counted>?", closed + 1)
    assert {name for (name,) in late} <= set(NAMES) - {canary}
    assert operator.rows("SELECT state FROM trainings") == [("running",)]
    operator.say("rollout", "promote", "tiny")
    operator.until(lambda: operator.rollout().state == "finished")
    operator.until(lambda: operator.rows("SELECT state FROM trainings") == [("superseded",)])
    assert "training tiny@2" in operator.say("train", "start", "tiny", "--rounds", "1", "--epochs", "1")
    operator.until(lambda: operator.rows("SELECT version, state FROM trainings") == [(1, "superseded"), (2, "finished")])
    assert operator.rows("SELECT COUNT(*) FROM updates u JOIN trainings t ON t.id=u.training WHERE t.version=2") == [(3,)]
