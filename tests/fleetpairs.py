"""A fleet, its processes, and the pairs of key and certificate that its broker and its server hold.

No test in here. A test module imports it by its name (`pythonpath` in pyproject.toml).
"""

import datetime as dt
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from edgefl.brokers.mosquitto import find_mosquitto
from edgefl.link.address import BrokerAddress
from edgefl.link.paho import PahoLink
from edgefl.names import SERVER
from edgefl.server.founding import authority_of, create_fleet
from edgefl.server.provision import provision
from edgefl.store.credentials import certificates_of
from edgefl.store.database import open_database
from edgefl.store.fleet import Fleet

DAY = 86400.0
needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="Mosquitto is not installed")


def free_port() -> int:
    """A port that nothing listens on at the moment, nor on the next one."""
    while True:
        with socket.socket() as one, socket.socket() as next_one:
            one.bind(("127.0.0.1", 0))
            port = int(one.getsockname()[1])
            try:
                next_one.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port


def with_a_device(root: Path) -> Fleet:
    """A fleet with the device cam-01, whose bundle lies beside it."""
    made = create_fleet(root / "farm", name="farm", port=free_port(), claim_port=free_port())
    provision(made, ["cam-01"], "rpi-zero-2w", root / "bundles")
    return made


@contextmanager
def process(fleet: Fleet, ready: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """An `edgefl` process, from the line that says it is ready until the end of the block."""
    command = [sys.executable, "-m", "edgefl", *words, "--fleet", str(fleet.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        try:
            assert child.stdout is not None
            line = child.stdout.readline()
            while line and ready not in line:
                line = child.stdout.readline()
            assert ready in line
            yield child
        finally:
            child.terminate()


def eventually(happened: Callable[[], bool], seconds: float = 15.0) -> bool:
    """Whether it happens in time."""
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def device_address(fleet: Fleet) -> BrokerAddress:
    """The broker, with cam-01's pair."""
    bundle = fleet.path.parent / "bundles" / "cam-01"
    return BrokerAddress("127.0.0.1", fleet.settings.port, bundle / "ca.crt", bundle / "device.crt", bundle / "device.key")


def server_link(fleet: Fleet) -> PahoLink:
    """The server's link, as `edgefl serve` makes it."""
    files = fleet.root_certificate, fleet.server_certificate, fleet.server_key
    return PahoLink(BrokerAddress("127.0.0.1", fleet.settings.port, *files), SERVER, clean_session=False)


def states(fleet: Fleet, name: str) -> list[str]:
    """Of all certificates that an owner had, oldest first."""
    with closing(open_database(fleet.database)) as database:
        return [one.state for one in certificates_of(database, name)]


def age(fleet: Fleet, owner: str, days: float, life: float = 100.0) -> None:
    """Put a pair in place that was made `days` ago, for `life` days."""
    authority, then = authority_of(fleet), dt.datetime.now(dt.UTC) - dt.timedelta(days=days)
    made = authority.broker(now=then, days=life) if owner == "broker" else authority.server(now=then, days=life)
    fleet.pair(owner).write_bytes(made.key + made.certificate)


def fits(path: Path) -> bool:
    """Whether the key in a file is its certificate's."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(path)
    except ssl.SSLError:
        return False
    return True
