"""The benchmarks of delivery, sudden death and bad weather, run small: they measure what they say, and find nothing wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from benchmarks import soak_memory
from benchmarks.faults_fuse import deaths
from benchmarks.faults_roles import Folded, Journal, Settled
from benchmarks.faults_verdict import judge
from edgefl.brokers.mosquitto import find_mosquitto
from edgefl.store.database import open_database, transaction

ROOT = Path(__file__).resolve().parents[1]
needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="Mosquitto is not installed")


def run(name, target, *options):
    """A benchmark as anybody would start it; what it wrote."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *options, "--json", str(target)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(target.read_text())


@pytest.mark.slow
@pytest.mark.broker
@needs_mosquitto
def test_delivery_counts_the_servers_bytes(tmp_path):
    """To two devices, multicast and one retained message cost the server one variant, a stream for each costs two."""
    found = run("push", tmp_path / "push.json", "--devices", "2", "--networks", "clean")
    rows = {row["method"]: row for row in found["rows"]}
    assert set(rows) == {"multicast", "retained", "unicast"}
    for method, times in (("multicast", 1), ("retained", 1), ("unicast", 2)):
        row = rows[method]
        assert row["completed"] == row["devices"] == 2
        assert row["seconds"] > 0
        assert times <= row["egress_bytes"] / row["blob_bytes"] < times * 1.5


@pytest.mark.slow
@pytest.mark.broker
@needs_mosquitto
def test_sixty_deaths_lose_nothing(tmp_path):
    """Killed sixty times by SIGKILL, at boundaries and at random, a fleet loses nothing, counts nothing twice, has its model."""
    found = run("faults", tmp_path / "faults.json", "--kills", "60", "--versions", "1", "--devices", "3")
    assert found["kills"] >= 60
    assert found["at_boundaries"] >= 30
    assert found["settled"] > 0
    assert found["rounds"] > 0
    assert (found["lost_updates"], found["double_counts"], found["devices_without_model"]) == (0, 0, 0)


@pytest.mark.slow
@pytest.mark.broker
@needs_mosquitto
def test_a_small_fleet_converges_after_bad_weather(tmp_path):
    """Ten agents, twenty seconds of cuts, restarts, kills and broker deaths: all hold the last version and its final weights."""
    found = run("soak", tmp_path / "soak.json", "--agents", "10", "--seconds", "20")
    assert found["converged"] == 10
    assert found["kills"] + found["cuts"] + found["restarts"] > 0
    assert found["rounds"] > 0
    assert len(found["samples"]) >= 5


def test_memory_that_fills_up_is_told_from_memory_that_leaks():
    """Growth in the warm-up does not count, a megabyte a minute after it does; the quarters show where it was."""
    filling = [(float(at), 5_000_000 + 100_000 * min(at, 60)) for at in range(200)]
    assert abs(soak_memory.slope(soak_memory.warm(filling))) < 1.0
    assert soak_memory.quarters(filling)[2:] == (11.0, 11.0)
    leaking = [(float(at), round(1_000_000 / 60 * at)) for at in range(200)]
    assert soak_memory.slope(soak_memory.warm(leaking)) == pytest.approx(1000.0, rel=1e-3)
    assert np.all(np.diff(soak_memory.quarters(leaking)) > 0.8)
    assert soak_memory.slope(soak_memory.warm(leaking[:20])) == 0.0  # too short to say anything


def test_a_fuse_is_fatal_until_its_quota_is_used_up(tmp_path):
    """A process dies by SIGKILL at a rename below the root, leaves its name, and the next one passes; other files are safe."""
    (tmp_path / "state").mkdir()
    code = f"""
from pathlib import Path
from benchmarks.faults_fuse import Fuse
root = Path({str(tmp_path)!r})
Fuse("device", root / "deaths", 1, root / "state").install()
for _ in range(40):
    (root / "elsewhere").write_text("x"); (root / "elsewhere").replace(root / "there")
print("alive", flush=True)
for _ in range(40):
    (root / "state" / "a").write_text("x"); (root / "state" / "a").replace(root / "state" / "b")
"""
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
        assert (done.returncode, done.stdout) == (-9, "alive\n")
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True).returncode == 0
    assert sorted(deaths(tmp_path / "deaths")) == ["device after replace b", "device before replace b"]


def test_the_slow_link_delays_and_drops():
    """A connection over it takes at least the round trip, and what is sent arrives whole in spite of the losses."""
    code = """
import socket, sys, threading, time
from benchmarks.slowlink import SlowLink, private_network
import subprocess
trouble = private_network()
if trouble:
    sys.exit(77)
data = bytes(range(256)) * 400
server = socket.create_server(("0.0.0.0", 5555))
def serve():
    peer, _ = server.accept(); peer.sendall(data); peer.close()
threading.Thread(target=serve, daemon=True).start()
far = '''
import hashlib, socket, time
began = time.monotonic(); s = socket.create_connection(("10.77.0.1", 5555)); took = time.monotonic() - began
data = b"".join(iter(lambda: s.recv(65536), b""))
print(took, hashlib.sha256(data).hexdigest())
'''
import hashlib
with SlowLink(0.02, 0.1) as link:
    out = subprocess.run(link.command([sys.executable, "-c", far]), capture_output=True, text=True, check=True).stdout.split()
assert 0.1 <= float(out[0]), out
assert out[1] == hashlib.sha256(data).hexdigest()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip("no network namespaces here")
    assert done.returncode == 0, done.stderr


class Books:
    """A fleet's ledger and journals in which two devices' updates made one round."""

    def __init__(self, root):
        self.root, self.parents = root, root / "parents"
        self.parents.mkdir()
        self.database = root / "fleet.sqlite"
        zero, moved = (self._parent(np.array(values, dtype="<f4")) for values in ([0, 0, 0, 0], [0.5, 1, 0, 0]))
        database = open_database(self.database)
        with transaction(database):
            database.execute(
                "INSERT INTO trainings (id, model, version, plan, state, first, started) VALUES (1, 'm', 1, x'', 'running', 1, 0)"
            )
            database.execute(
                "INSERT INTO rounds (training, round, opened, closed, weights, result) VALUES (1, 1, 0, 10, ?, ?)", (zero, moved)
            )
            for device in ("cam-01", "cam-02"):
                self.add(database, device)
        database.close()
        for place, device in enumerate(("cam-01", "cam-02")):
            self.fold(device, place, 1.0 + place)
            Journal(root / "settled").write(Settled(device, 1, 1, self.sha(device)))

    @staticmethod
    def sha(device):
        """Of its update."""
        return device.encode().ljust(32, b"-")

    def _parent(self, vector):
        name = bytes([int(10 * vector.sum())]) * 32
        (self.parents / name.hex()).write_bytes(vector.tobytes())
        return name

    def add(self, database, device, counted=1, received=1.0):
        """A row of the ledger."""
        database.execute(
            """INSERT INTO updates (training, device, round, variant, samples, loss, received, sha256, data, counted)
               VALUES (1, ?, 1, 'w1', 5, 0.5, ?, ?, x'', ?)""",
            (device, received, self.sha(device), counted),
        )

    def fold(self, device, position, value):
        """What the server noted of it."""
        positions, values = np.array([position], "<i8").tobytes(), np.array([value], "<f4").tobytes()
        Journal(self.root / "folded").write(Folded(1, device, 1, 5, positions, values))

    def judge(self):
        """Lost and double."""
        verdict = judge(self.database, self.root / "settled", self.root / "folded", (self.parents,))
        assert (verdict.lost + verdict.double > 0) == bool(verdict.complaints)
        return verdict.lost, verdict.double


def test_the_verdict_finds_what_is_wrong(tmp_path):
    """Books that agree are right; an update that is missing, never counted, or counted twice is found, each by its own count."""
    books = Books(tmp_path)
    assert books.judge() == (0, 0)
    with open_database(books.database) as database:
        books.add(database, "cam-03", counted=None)
    assert books.judge() == (1, 0)
    Journal(tmp_path / "settled").write(Settled("cam-09", 1, 1, bytes(32)))
    assert books.judge() == (2, 0)
    books.fold("cam-02", 1, 4.0)  # as if its content had counted twice in the weights
    assert books.judge() == (2, 1)
