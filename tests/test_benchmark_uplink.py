"""The uplink benchmark counts what it says, compares like with like, and goes on without what is missing."""

import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from benchmarks import uplink_peers
from benchmarks.peers import perceptron
from benchmarks.uplink_peers import install
from benchmarks.uplink_proxy import Count, CountingProxy, total
from benchmarks.uplink_result import Course, LeftOutError, Row, socket_row
from benchmarks.uplink_table import ratios
from benchmarks.uplink_task import PARAMETERS, Setting, write_task

ROOT = Path(__file__).resolve().parents[1]
SETTING = Setting(data=None, devices=2, rounds=2, epochs=1, batch=16, learning_rate=0.1, alpha=1.0)


@pytest.fixture
def doubling_server():
    """A server on loopback that answers all that a client sends, once it has ended, by twice as much; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    data = b"".join(iter(lambda c=connection: c.recv(65536), b""))
                    connection.sendall(data * 2)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5.0)


def exchange(port, data):
    """What comes back through a port for these bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=10.0) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(65536), b""))


def test_the_proxy_counts_every_byte_of_each_device_and_changes_none(doubling_server):
    """Bytes of two devices are told apart, up from down, and arrive as they were sent."""
    data = np.random.default_rng(0).bytes(300_001)
    with CountingProxy(doubling_server, ["a", "b"]) as proxy:
        start = time.time()
        assert exchange(proxy.ports["a"], data) == data * 2
        assert exchange(proxy.ports["b"], b"xyz") == b"xyzxyz"
        found = proxy.between(start, time.time() + 1.0)
    assert found == {"a": Count(300_001, 600_002), "b": Count(3, 6)}
    assert total(found) == Count(300_004, 600_008)


def test_the_proxy_counts_by_time(doubling_server):
    """A span holds what passed in it; spans that follow each other hold everything once."""
    with CountingProxy(doubling_server, ["a"]) as proxy:
        marks = [time.time()]
        for size in (10, 200, 3000):
            exchange(proxy.ports["a"], bytes(size))
            marks.append(time.time())
        spans = [proxy.between(a, b)["a"].up for a, b in itertools.pairwise(marks)]
    assert spans == [10, 200, 3000]


def test_a_server_that_is_not_there_ends_the_connection():
    """The device sees its connection closed, as without a proxy, and nothing is counted."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        nobody = probe.getsockname()[1]
    with CountingProxy(nobody, ["a"]) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.ports["a"]), timeout=10.0) as client:
            assert client.recv(10) == b""
        assert proxy.between(0.0, time.time() + 1.0)["a"] == Count(0, 0)


def test_everybody_trains_as_torch_does(tmp_path):
    """A pass of the peers' numpy training gives torch's weights of the same batches; the first weights are edgefl's."""
    task = perceptron.Task(write_task(SETTING, 3, tmp_path / "task"))
    start, (x, y) = task.start(), task.shard(1)
    assert sum(value.size for value in start.values()) == PARAMETERS
    trained = perceptron.train(start, (x, y), epochs=1, batch=16, learning_rate=0.1, rng=np.random.default_rng(5))

    from edgefl.export.models import load_factory

    module = load_factory("mnist-2nn").build(seed=3)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    order = np.random.default_rng(5).permutation(len(x))
    for first in range(0, len(x), 16):
        rows = order[first : first + 16]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(torch.from_numpy(x[rows])), torch.from_numpy(y[rows])).backward()
        optimizer.step()
    for name, value in module.state_dict().items():
        np.testing.assert_allclose(trained[name], value.numpy(), atol=2e-5)


def test_feedback_loses_nothing(monkeypatch):
    """What a codec has left out comes with the next updates: what is read and the residual are what was sent."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "peers"))
    from benchmarks.peers.loop import Feedback

    class Coarse:
        def send(self, delta):
            return 1, {name: np.round(value) for name, value in delta.items()}

    codec = Feedback(Coarse())
    rng = np.random.default_rng(0)
    deltas = [rng.normal(0.0, 0.4, 50).astype(np.float32) for _ in range(40)]
    read = sum(codec.send({"w": delta})[1]["w"] for delta in deltas)
    assert np.abs(sum(deltas) - read).max() <= 0.5001  # what is rounded off at most
    assert np.abs(sum(np.round(delta) for delta in deltas) - sum(deltas)).max() > 1.0  # without feedback it is lost


def row(system, label, seed=0, **values):
    """A row with few numbers."""
    given = {"accuracy": 0.9, "measured": "socket", "uplink_bytes": 100, "downlink_bytes": 50, "payload_uplink_bytes": None}
    return Row(
        system=system, label=label, seed=seed, rounds=2, devices=2, dense_uplink_bytes=1000, seconds=1.0, **{**given, **values}
    )


def test_systems_are_compared_by_sockets_and_codecs_by_payload():
    """A codec, which has no transport, is never set against the bytes of a socket; seeds that only one side has do not count."""
    rows = [
        row("edgefl", "edgefl", payload_uplink_bytes=80, accuracy=0.95, idle_bytes_per_minute=4.0),
        row("flower", "flower", uplink_bytes=5000, downlink_bytes=100, idle_bytes_per_minute=40.0),
        row("flower", "flower", seed=1, uplink_bytes=9000),
        row("nncodec", "nncodec", measured="payload", uplink_bytes=40, payload_uplink_bytes=40, downlink_bytes=None),
    ]
    flower, nncodec = ratios(rows)
    assert (flower.uplink, flower.downlink, flower.idle, flower.seeds) == (50.0, 2.0, 10.0, 1)
    assert (flower.peer_accuracy, flower.edgefl_accuracy) == (0.9, 0.95)
    assert (nncodec.measured, nncodec.uplink, nncodec.downlink, nncodec.idle) == ("payload", 0.5, None, None)


def test_a_run_that_did_not_do_all_rounds_is_no_row():
    """Fewer rounds would be fewer bytes."""
    with CountingProxy(1, ["a"]) as proxy, pytest.raises(LeftOutError, match="1 of 2 rounds"):
        socket_row(Course("x", "x", 0, 0.0, [1.0], 2.0, 2.0, [0.5]), SETTING, proxy)


@pytest.mark.slow
def test_a_peer_that_does_not_install_says_why(tmp_path, monkeypatch):
    """Pip's own words come with the refusal, and no half-made environment passes for a whole one."""
    monkeypatch.setattr(uplink_peers, "STEPS", {"nothing": ((str(tmp_path / "no-such-package.whl"),),)})
    for _ in range(2):
        with pytest.raises(LeftOutError, match=r"nothing does not install: .*no-such-package"):
            install("nothing", tmp_path / "peers")


@pytest.mark.slow
@pytest.mark.broker
def test_a_quick_run_writes_all_its_numbers(tmp_path):
    """Real processes over a real broker: the report's sums agree with each other, and what was left out is named."""
    target = tmp_path / "uplink.json"
    command = [sys.executable, "-m", "benchmarks.uplink", "--quick", "--json", str(target)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(target.read_text())
    edgefl, dense = report["rows"]
    assert (edgefl["system"], edgefl["measured"], dense["system"], dense["measured"]) == ("edgefl", "socket", "dense", "payload")
    assert set(report["left_out"]) == {"flwr", "openfl", "nncodec"}
    for found in (edgefl, dense):
        assert (found["rounds"], found["devices"], found["dense_uplink_bytes"]) == (3, 3, 4 * PARAMETERS * 9)
        assert found["accuracy"] > 0.8
        assert found["accuracy"] == found["history"][-1]["accuracy"]
        assert found["uplink_bytes"] == sum(entry["uplink_bytes"] for entry in found["history"])
    assert dense["uplink_bytes"] == dense["dense_uplink_bytes"]
    assert edgefl["uplink_bytes"] == sum(entry["uplink_bytes"] for entry in edgefl["by_device"])
    assert edgefl["downlink_bytes"] == sum(entry["downlink_bytes"] for entry in edgefl["history"])
    assert 1.0 < edgefl["uplink_bytes"] / edgefl["payload_uplink_bytes"] < 1.5  # TLS, MQTT and acknowledgements are counted too
    assert edgefl["dense_uplink_bytes"] > 50 * edgefl["uplink_bytes"]
    assert edgefl["setup_downlink_bytes"] > 3 * 4 * PARAMETERS  # the model's installation is apart from the rounds
    assert edgefl["idle_bytes_per_minute"] is not None
    assert report["ratios"][0]["measured"] == "payload"
    assert report["task"]["data"] == "digits"
