"""What a link can be tried against: Mosquitto and amqtt as processes with TLS, and the broker in memory, all in one shape.

No test in here. A test module imports it by its name (`pythonpath` in pyproject.toml).
"""

import contextlib
import os
import pwd
import random
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgefl.link.address import BrokerAddress
from edgefl.link.contract import Message
from edgefl.link.memory import MemoryLink
from edgefl.link.memory_broker import MemoryBroker
from edgefl.link.paho import PahoLink
from toycertificates import Authority

MOSQUITTO = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
AMQTT = """
import asyncio, sys
from amqtt.broker import Broker
async def main(port, ca, certificate, key):
    broker = Broker({
        "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}", "ssl": True,
                                  "cafile": ca, "certfile": certificate, "keyfile": key}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    })
    await broker.start()
    await asyncio.Event().wait()
asyncio.run(main(*sys.argv[1:]))
"""


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RealBroker:
    """A broker process on loopback with TLS, and links to it."""

    def __init__(self, directory: Path, kind: str, *, extra: str = "") -> None:
        self.kind = kind
        self.authority = Authority(directory)
        self.ca = self.authority.files[0]
        self.port = free_port()
        self.server = self.authority.issue("broker")
        self.configuration = directory / "mosquitto.conf"
        self.configuration.write_text(
            f"listener {self.port} 127.0.0.1\ncafile {self.ca}\ncertfile {self.server[0]}\nkeyfile {self.server[1]}\n"
            f"user {pwd.getpwuid(os.getuid()).pw_name}\n"
            "require_certificate true\nuse_identity_as_username true\nallow_anonymous false\nlog_dest none\n" + extra
        )
        self.process: subprocess.Popen[bytes] | None = None
        self.links: list[PahoLink] = []
        self.start()

    def start(self) -> None:
        """Start, and wait until the port answers."""
        if self.kind == "mosquitto":
            command = [str(MOSQUITTO), "-c", str(self.configuration)]
        else:
            files = (str(self.ca), str(self.server[0]), str(self.server[1]))
            command = [sys.executable, "-c", AMQTT, str(self.port), *files]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.05)
        pytest.fail("the broker did not start")

    def stop(self) -> None:
        """Kill it: nothing is persisted."""
        if self.process:
            self.process.kill()
            self.process.wait(120)
            self.process = None

    def address(self, name: str) -> BrokerAddress:
        """The broker, with a certificate for this identity."""
        certificate, key = self.authority.issue(name)
        return BrokerAddress("127.0.0.1", self.port, self.ca, certificate, key)

    def link(self, name: str, *, will: Message | None = None, clean_session: bool = True, budget: int = 8 << 20) -> PahoLink:
        """A link that is closed with the broker."""
        link = PahoLink(self.address(name), name, will=will, clean_session=clean_session, budget=budget, rng=random.Random(0))
        self.links.append(link)
        return link

    def drop(self, link: PahoLink) -> None:
        """Cut a connection without a good-bye."""
        client = link._connection.client
        assert client is not None
        sock = client.socket()
        assert isinstance(sock, socket.socket)
        sock.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """Close all links, then the broker."""
        for link in self.links:
            link.close(0.0)
        self.stop()


class MemoryWorld:
    """The same for the broker in memory."""

    kind = "memory"

    def __init__(self) -> None:
        self.broker = MemoryBroker()

    def link(self, name: str, *, will: Message | None = None, clean_session: bool = True, budget: int = 8 << 20) -> MemoryLink:
        """A link to it."""
        return MemoryLink(self.broker, name, will=will, clean_session=clean_session, budget=budget)

    def drop(self, link: MemoryLink) -> None:
        """Cut a connection."""
        link.drop()

    def stop(self) -> None:
        """Go away and forget everything."""
        self.broker.stop(forget=True)

    def start(self) -> None:
        """Come back."""
        self.broker.start()

    def end(self) -> None:
        """Nothing to end."""


World = RealBroker | MemoryWorld
