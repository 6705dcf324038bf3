"""What a board costs while nothing happens: `python -m benchmarks.idle --json FILE --seconds 120`.

Model: a real fleet with a real broker, server and agent, each a process, on loopback. The agent's connection goes through a tap
that passes TLS on and reads the lengths of its records, of which each holds whole packets: a record of two bytes is a ping or its
answer, everything else is traffic beyond keep-alives. The board fetches a version, trains a round, and is left alone. When its
trainer has gone the clock starts.

A day is then extrapolated as what was seen per second, plus one connection (with its birth, subscriptions and all that is
retained) and one signed-anew order, which the broker delivers with that connection as it does every day.
"""

import argparse
import json
import os
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgefl.demo.processes import Company, Process
from edgefl.demo.stage import free_port
from edgefl.device.resources import resident
from edgefl.server.founding import create_fleet
from edgefl.server.provision import provision

DAY = 86400.0
DEVICE, PROFILE, MODEL = "cam-01", "rpi-zero-2w", "mnist-2nn"
TLS_OVERHEAD = 17
"""Of a TLS 1.3 record with AES-GCM or ChaCha20: 16 bytes of tag, one of the type within."""
PING = 2
HEADER = struct.Struct(">BHH")


@dataclass(slots=True)
class Direction:
    """What went one way: bytes of the socket, MQTT bytes beyond pings, and pings."""

    wire: int = 0
    mqtt: int = 0
    pings: int = 0
    _buffer: bytearray = field(default_factory=bytearray)

    def take(self, data: bytes) -> None:
        """Count a piece of the stream."""
        self.wire += len(data)
        self._buffer += data
        while len(self._buffer) >= HEADER.size:
            kind, _, length = HEADER.unpack_from(self._buffer)
            if len(self._buffer) < HEADER.size + length:
                return
            del self._buffer[: HEADER.size + length]
            inside = length - TLS_OVERHEAD
            if kind == 23 and inside == PING:
                self.pings += 1
            elif kind == 23:
                self.mqtt += max(0, inside)


class Tap:
    """Passes connections on to a port of this machine and counts what goes by."""

    def __init__(self, target: int) -> None:
        self.up, self.down = Direction(), Direction()
        self.connections = 0
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """No further connections."""
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                self.connections += 1
                for source, sink, way in ((near, far, self.up), (far, near, self.down)):
                    threading.Thread(target=_pump, args=(source, sink, way), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket, way: Direction) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            way.take(data)
            sink.sendall(data)
    for end in (source, sink):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the numbers."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.idle", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here")
    parser.add_argument("--seconds", type=float, default=120.0, help="how long to look (default: %(default)g)")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="edgefl-") as directory:
        result = measure(Path(directory), given.seconds)
    for name, value in result.items():
        print(f"{name:32} {value}")
    if given.json:
        given.json.write_text(json.dumps(result, indent=2) + "\n")


def measure(workspace: Path, seconds: float) -> dict[str, float]:
    """Set up a fleet, leave its board alone for some seconds, and say what it took."""
    with board(workspace) as (agent, tap, trainer):
        wait_until(lambda: not children(agent.pid), 120.0, "the trainer's end")
        before = (tap.up.mqtt, tap.down.mqtt, tap.up.pings, tap.up.wire + tap.down.wire)
        time.sleep(seconds)
        after = (tap.up.mqtt, tap.down.mqtt, tap.up.pings, tap.up.wire + tap.down.wire)
        memory = resident(agent.pid)
        assert tap.connections == 1, "the connection broke"
        up, down, pings, wire = (b - a for a, b in zip(before, after, strict=True))
        reconnect = one_connection(agent, tap, workspace)
        return {
            "seconds": seconds,
            "mqtt_bytes_up": up,
            "mqtt_bytes_down": down,
            "pings": pings,
            "connection_mqtt_bytes": reconnect,
            "mqtt_bytes_per_day": round((up + down) * DAY / seconds + reconnect),
            "ping_mqtt_bytes_per_day": round(2 * PING * pings * DAY / seconds),
            "tls_bytes_per_day": round(wire * DAY / seconds),
            "agent_rss_mb": round(memory / 1e6, 1),
            "trainer_peak_rss_mb": trainer,
        }


@contextmanager
def board(workspace: Path) -> Iterator[tuple[Process, Tap, float]]:
    """A board that has trained a round of a real model: its agent, the tap, and the trainer's largest resident memory in MB."""
    fleet = create_fleet(workspace / "fleet", name="idle", host="127.0.0.1", port=free_port())
    tap = Tap(fleet.settings.port)
    rng = np.random.default_rng(0)
    np.savez(workspace / "data.npz", x=rng.normal(size=(200, 784)).astype(np.float32), y=rng.integers(0, 10, 200))
    (made,) = provision(fleet, [DEVICE], PROFILE, workspace / "devices", data=f"npz:{workspace / 'data.npz'}")
    configuration = made.bundle / "device.toml"
    configuration.write_text(configuration.read_text().replace(f"port = {fleet.settings.port}", f"port = {tap.port}"))
    os.environ["EDGEFL_FLEET"] = str(fleet.path)
    company = Company(workspace)
    try:
        company.start("broker", "broker").wait_for("ready", 30.0)
        company.start("server", "serve").wait_for("connected to the broker", 30.0)
        company.once("push", "push", MODEL).wait(300.0)
        agent = company.start("device", "device", "run", str(made.bundle))
        agent.wait_for(f"{MODEL}@1 is active", 120.0)
        company.once("train", "train", "start", MODEL, "--rounds", "1").wait(60.0)
        agent.wait_for("trained in", 120.0)
        trainer = max((resident(pid) for pid in children(agent.pid)), default=0)
        company.once("follow", "train", "follow", MODEL).wait(60.0)
        yield agent, tap, round(trainer / 1e6, 1)
    finally:
        company.close()
        tap.close()


def one_connection(agent: Process, tap: Tap, workspace: Path) -> int:
    """MQTT bytes of a new connection, both ways, pings left out: the agent's, ended and started again."""
    agent.stop()
    agent.wait(30.0)
    before = tap.up.mqtt + tap.down.mqtt
    again = Process("device-again", ["device", "run", str(workspace / "devices" / DEVICE)], workspace)
    try:
        again.wait_for("connected", 30.0)
        time.sleep(5.0)
    finally:
        again.stop()
        again.ended(time.monotonic() + 10.0)
    return tap.up.mqtt + tap.down.mqtt - before


def children(pid: int) -> list[int]:
    """The processes that a process has started and that are still there."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def wait_until(happened: Callable[[], bool], timeout: float, what: str) -> None:
    """Wait for it, or fail."""
    deadline = time.monotonic() + timeout
    while not happened():
        assert time.monotonic() < deadline, f"no sign of {what}"
        time.sleep(0.5)


if __name__ == "__main__":
    main()
