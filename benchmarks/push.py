"""How long a variant takes to a fleet, and what the server sends for it: `python -m benchmarks.push --json FILE`.

Model: one variant of 5 MB, one Mosquitto, N devices that are connected already; the clock runs from the word to the last device
that has all files, verified and on disk. Three ways in one run: *multicast* is edgefl's (devices ask, the server sends each block
once to all), *retained* is one message with the whole variant, *unicast* is one stream of blocks per device. The server's bytes
are counted on its socket: MQTT and TLS, without TCP and IP.

Two networks: *clean* is loopback; *lossy* has 5 % loss in each direction and 200 ms a round trip, by a program between two
network namespaces (`benchmarks.slowlink`), with the kernel's own TCP (cubic) above it. It is left out where these are not
permitted, and the result says so.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from benchmarks.push_peers import Publisher
from benchmarks.push_receivers import Orders
from benchmarks.push_stage import LOOPBACK, Broker, Stage, broker, server, stage
from benchmarks.slowlink import CONGESTION, NEAR, SlowLink, private_network
from edgefl import __version__

METHODS = ("multicast", "retained", "unicast")
LOSS, DELAY = 0.05, 0.2
PER_PROCESS = 150
"""Receivers in one process; beyond one process for each core there is nothing to win."""


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement.

    Attributes:
        method, devices: what, and to how many.
        loss: of packets, in each direction; 0 on the clean network.
        delay: seconds of a round trip that were added.
        seconds: until the last device had everything; None if some did not in time.
        median_seconds: until half of those that came to an end had.
        completed: devices that have everything.
        egress_bytes: that the server has sent.
        blob_bytes: of the variant.
        broker_rss_mb: the broker's largest resident memory.
    """

    method: str
    devices: int
    loss: float
    delay: float
    seconds: float | None
    median_seconds: float | None
    completed: int
    egress_bytes: int
    blob_bytes: int
    broker_rss_mb: float


class Receivers:
    """Processes full of receivers (`benchmarks.push_receivers`).

    Attributes:
        ends: when each device had everything, as they come.
    """

    def __init__(self, stage: Stage, method: str, devices: int, link: SlowLink | None, state: Path) -> None:
        self.ends: list[float] = []
        self._children: list[subprocess.Popen[str]] = []
        self._threads: list[threading.Thread] = []
        chosen = [str(bundle) for bundle in stage.bundles[:devices]]
        processes = min(os.cpu_count() or 1, devices) if devices <= PER_PROCESS else -(-devices // PER_PROCESS)
        for place in range(processes):
            files = msgspec.msgpack.encode(stage.files)
            host = NEAR if link else LOOPBACK
            orders = Orders(method, host, stage.port, chosen[place::processes], str(state), files)
            command = [sys.executable, "-m", "benchmarks.push_receivers"]
            child = subprocess.Popen(
                link.command(command) if link else command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            self._children.append(child)
            self._tell(child, msgspec.json.encode(orders).decode())

    def wait_ready(self) -> None:
        """Until all are connected and subscribed."""
        for child in self._children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n", "receivers died"
            self._threads.append(threading.Thread(target=self._note, args=(child,), daemon=True))

    def go(self) -> None:
        """Let them begin."""
        for thread in self._threads:
            thread.start()
        for child in self._children:
            self._tell(child, "go")

    def close(self) -> None:
        """End them."""
        for child in self._children:
            child.kill()
            child.communicate()

    def _note(self, child: subprocess.Popen[str]) -> None:
        assert child.stdout is not None
        for line in child.stdout:
            self.ends.append(json.loads(line)["at"])

    @staticmethod
    def _tell(child: subprocess.Popen[str], line: str) -> None:
        assert child.stdin is not None
        child.stdin.write(line + "\n")
        child.stdin.flush()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.push", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here")
    parser.add_argument("--devices", default="1,10,100,300", metavar="N,N", help="how many devices (default: %(default)s)")
    parser.add_argument("--methods", default=",".join(METHODS), metavar="M,M", help="which ways (default: %(default)s)")
    parser.add_argument("--networks", default="clean,lossy", metavar="N,N", help="which networks (default: %(default)s)")
    parser.add_argument(
        "--limit", type=float, default=1200.0, help="seconds that one measurement may take (default: %(default)g)"
    )
    given = parser.parse_args(arguments)
    sizes, networks = [int(word) for word in given.devices.split(",")], given.networks.split(",")
    trouble = private_network() if "lossy" in networks else "not asked for"
    if trouble and "lossy" in networks:
        print(f"the lossy network is left out: {trouble}")
        networks.remove("lossy")
    rows = list(measured(sizes, given.methods.split(","), networks, given.limit, private=not trouble))
    print_table(rows)
    if given.json is not None:
        given.json.write_text(json.dumps(report(rows, trouble), indent=1) + "\n", encoding="utf-8")


def measured(
    sizes: Sequence[int], methods: Sequence[str], networks: Sequence[str], limit: float, *, private: bool
) -> Iterator[Row]:
    """A row for each network, number of devices and method."""
    hosts, bind = ((LOOPBACK, NEAR), "0.0.0.0") if private else ((LOOPBACK,), LOOPBACK)  # noqa: S104 - a network of our own
    with tempfile.TemporaryDirectory(prefix="edgefl-push-") as directory, stage(Path(directory), max(sizes), hosts, bind) as made:
        for network in networks:
            for devices in sizes:
                for method in methods:
                    row = measure(made, method, devices, limit, lossy=network == "lossy")
                    print(f"  {network} {method} to {devices}: {row.seconds} s, {row.egress_bytes:,} bytes", flush=True)
                    yield row


def measure(stage: Stage, method: str, devices: int, limit: float, *, lossy: bool) -> Row:
    """Deliver once."""
    with ExitStack() as stack:
        running = stack.enter_context(broker(stage, unlimited=method != "multicast"))
        link = stack.enter_context(SlowLink(LOSS, DELAY) if lossy else nullcontext())
        start = stack.enter_context(multicast(stage) if method == "multicast" else publisher(stage, method, devices))
        state = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=stage.workspace)))
        receivers = Receivers(stage, method, devices, link, state)
        stack.callback(receivers.close)
        receivers.wait_ready()
        time.sleep(1.0)  # subscriptions and announcements are done with
        before, began = stage.egress(), time.monotonic()
        receivers.go()
        start()
        await_all(receivers, devices, began + limit, running)
        egress = stage.egress() - before
    ends = sorted(end - began for end in receivers.ends)
    return Row(
        method=method,
        devices=devices,
        loss=LOSS if lossy else 0.0,
        delay=DELAY if lossy else 0.0,
        seconds=round(ends[-1], 2) if len(ends) == devices else None,
        median_seconds=round(statistics.median(ends), 2) if ends else None,
        completed=len(ends),
        egress_bytes=egress,
        blob_bytes=stage.blob_bytes,
        broker_rss_mb=round(running.peak / 1e6, 1),
    )


def await_all(receivers: Receivers, devices: int, deadline: float, running: Broker) -> None:
    """Wait until every device has everything, or the time is up."""
    while len(receivers.ends) < devices and time.monotonic() < deadline:
        running.look()
        time.sleep(0.05)


@contextmanager
def multicast(stage: Stage) -> Iterator[Callable[[], None]]:
    """The server of edgefl, which answers as soon as devices ask."""
    with server(stage):
        yield lambda: None


@contextmanager
def publisher(stage: Stage, method: str, devices: int) -> Iterator[Callable[[], None]]:
    """A peer, which begins when it is told to, in a thread of its own."""
    peer = Publisher(stage)
    work = peer.retained if method == "retained" else lambda: peer.unicast(devices)
    try:
        yield threading.Thread(target=work, daemon=True).start
    finally:
        peer.close()


def print_table(rows: Sequence[Row]) -> None:
    """All measurements."""
    heads = (("devices", 8), ("loss", 6), ("seconds", 9), ("median", 9), ("done", 6), ("egress, MB", 12), ("x variant", 11))
    print(f"\n{'method':11}" + "".join(f"{head:>{width}}" for head, width in (*heads, ("broker, MB", 12))))
    for row in rows:
        seconds = "-" if row.seconds is None else f"{row.seconds:.1f}"
        median = "-" if row.median_seconds is None else f"{row.median_seconds:.1f}"
        share = row.egress_bytes / row.blob_bytes
        print(
            f"{row.method:11}{row.devices:>8}{row.loss:>6.0%}{seconds:>9}{median:>9}{row.completed:>6}"
            f"{row.egress_bytes / 1e6:>12.1f}{share:>11.2f}{row.broker_rss_mb:>12.0f}"
        )


def report(rows: Sequence[Row], trouble: str) -> dict[str, object]:
    """What is written."""
    return {
        "rows": [asdict(row) for row in rows],
        "emulation": trouble or "two network namespaces, TUN devices and a program that drops and delays packets",
        "congestion_control": CONGESTION,
        "edgefl": __version__,
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main()
