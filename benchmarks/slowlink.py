"""A slow, lossy network on this machine: two network namespaces, and a program between them that delays and drops packets.

Model: the process that calls `private_network` lives in a namespace of its own from then on, where it may listen on any address
and nobody else can reach it. `SlowLink` adds a second namespace, joined to the first by two TUN devices; what the kernel sends
into one comes out of the other half a round trip later, or not at all. Above the packets everything is the kernel's own TCP: its
retransmissions, its congestion control, its round trips. `tc netem` would do the same where the kernel has it.

Rules: each packet is dropped with the same probability, in both directions, independently; order is kept; bandwidth is not
limited. Linux and root only (`private_network` says so).
"""

import argparse
import ctypes
import fcntl
import os
import random
import select
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType

NEAR, FAR = "10.77.0.1", "10.77.0.2"
"""Addresses of the two ends."""
CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
LONGEST_PACKET = 2048
AT_ONCE = 256
"""Packets read from one side before the other gets its turn."""
CONGESTION = "cubic"
"""What brokers' machines use, whatever this one has chosen for itself."""


def private_network() -> str:
    """Move this process, and what it starts from now on, into a network of its own; why that is impossible, or nothing.

    To be called before there are threads, because a namespace belongs to a thread.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "unshare") or libc.unshare(CLONE_NEWNET) != 0:
        return f"no network namespaces here ({os.strerror(ctypes.get_errno())})"
    try:
        _ip("link", "set", "lo", "up")
        os.close(_open_tun("probe"))
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no TUN devices here ({error})"
    return ""


class SlowLink:
    """The second namespace, for as long as the context lasts; programs are started in it by `command`.

    Args:
        loss: share of packets that are dropped, in each direction.
        delay: seconds of a round trip.
        seed: of the drops.
    """

    def __init__(self, loss: float, delay: float, seed: int = 0) -> None:
        near = _open_tun("near")
        _configure("near", NEAR)
        options = ["--near", str(near), "--loss", str(loss), "--delay", str(delay), "--seed", str(seed)]
        command = [sys.executable, "-m", "benchmarks.slowlink", *options]
        self._child = subprocess.Popen(command, pass_fds=(near,), stdout=subprocess.PIPE)
        os.close(near)
        assert self._child.stdout is not None
        assert self._child.stdout.readline() == b"ready\n", "the slow link does not start"

    def command(self, words: Sequence[str]) -> list[str]:
        """The command line that runs a command at the far end."""
        return ["nsenter", f"--net=/proc/{self._child.pid}/ns/net", "--", *words]

    def __enter__(self) -> "SlowLink":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._child.kill()
        self._child.communicate()


def _open_tun(name: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return descriptor


def _configure(name: str, address: str) -> None:
    _ip("address", "add", f"{address}/30", "dev", name)
    _ip("link", "set", name, "up", "mtu", "1500", "txqueuelen", "20000")
    _ip("route", "replace", "10.77.0.0/30", "dev", name, "congctl", CONGESTION)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _carry(near: int, far: int, loss: float, delay: float, rng: random.Random) -> None:
    """Pass packets between two descriptors, for ever."""
    waiting: dict[int, deque[tuple[float, bytes]]] = {near: deque(), far: deque()}
    other = {near: far, far: near}
    poller = select.poll()
    for descriptor in other:
        poller.register(descriptor, select.POLLIN)
    while True:
        due = [queue[0][0] for queue in waiting.values() if queue]
        pause = max(0.0, min(due) - time.monotonic()) if due else 1.0
        for descriptor, _ in poller.poll(1000.0 * pause):
            _take(descriptor, waiting[descriptor], loss, time.monotonic() + delay, rng)
        now = time.monotonic()
        for descriptor, queue in waiting.items():
            while queue and queue[0][0] <= now:
                _give(other[descriptor], queue.popleft()[1])


def _take(descriptor: int, queue: deque[tuple[float, bytes]], loss: float, due: float, rng: random.Random) -> None:
    for _ in range(AT_ONCE):
        try:
            packet = os.read(descriptor, LONGEST_PACKET)
        except BlockingIOError:
            return
        if rng.random() >= loss:
            queue.append((due, packet))


def _give(descriptor: int, packet: bytes) -> None:
    try:
        os.write(descriptor, packet)
    except OSError:
        return  # the other end's queue is full, or its device is down: lost, as on a wire


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of the program between the namespaces."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.slowlink")
    parser.add_argument("--near", type=int, required=True, help="descriptor of the near TUN device")
    parser.add_argument("--loss", type=float, required=True)
    parser.add_argument("--delay", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    trouble = private_network()
    assert not trouble, trouble
    far = _open_tun("far")
    _configure("far", FAR)
    print("ready", flush=True)
    _carry(given.near, far, given.loss, given.delay / 2.0, random.Random(given.seed))  # noqa: S311 - no secret


if __name__ == "__main__":
    main()
