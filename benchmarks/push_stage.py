"""What stands ready before anything is delivered: a fleet with one version, bundles; for each measurement a broker and a server.

Model: the fleet is founded once and its version pushed once, by `edgefl push`. Broker and server are started anew for each
measurement, so that none inherits another's queues. The server's connection leads through a proxy that counts its bytes; devices
go to the broker directly, at an address that a slow link can reach.
"""

import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.uplink_proxy import CountingProxy
from edgefl.brokers.listener import Listener, wait_ready
from edgefl.brokers.mosquitto import find_mosquitto, write_configuration
from edgefl.demo.processes import Process
from edgefl.demo.stage import free_port
from edgefl.device.resources import resident
from edgefl.link.address import BrokerAddress
from edgefl.server.founding import authority_of, create_fleet
from edgefl.server.provision import numbered, provision
from edgefl.store.atomic import write_file
from edgefl.store.database import open_database
from edgefl.store.fleet import Fleet
from edgefl.store.versions import all_variants, get_variant
from edgefl.wire.files import FileRef

PROFILE, MODEL = "rpi-5-8gb", "benchmarks.push_model:FiveMegabytes"
LOOPBACK = "127.0.0.1"
PUSH_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Stage:
    """A fleet whose devices are to receive one variant.

    Attributes:
        workspace: directory of everything.
        fleet: its port is the proxy's, through which the server goes.
        bundles: of the devices.
        files: of the variant.
        port: of the broker itself.
        bind: address that it listens on.
        proxy: counts what the server sends.
    """

    workspace: Path
    fleet: Fleet
    bundles: tuple[Path, ...]
    files: tuple[FileRef, ...]
    port: int
    bind: str
    proxy: CountingProxy

    @property
    def blob_bytes(self) -> int:
        """Bytes of the variant."""
        return sum(ref.length for ref in self.files)

    @property
    def server_address(self) -> BrokerAddress:
        """How the server, or a peer in its place, gets to the broker."""
        fleet = self.fleet
        port = self.proxy.ports["server"]
        return BrokerAddress(LOOPBACK, port, fleet.root_certificate, fleet.server_certificate, fleet.server_key)

    def egress(self) -> int:
        """Bytes that the server's socket has sent until now: MQTT and TLS, without TCP and IP."""
        return self.proxy.between(0.0, float("inf"))["server"].up


@contextmanager
def stage(workspace: Path, devices: int, hosts: tuple[str, ...], bind: str) -> Iterator[Stage]:
    """Found the fleet, provision devices, push the version.

    Args:
        workspace: an empty directory.
        devices: how many.
        hosts: addresses at which the broker is reached; they stand in its certificate.
        bind: address that it listens on.

    Raises:
        EdgeflError: something of it fails.
    """
    port = free_port()
    with CountingProxy(port, ["server"]) as proxy:
        fleet = create_fleet(workspace / "fleet", name="push", host=LOOPBACK, port=proxy.ports["server"])
        broker = authority_of(fleet).broker(hosts)
        write_file(fleet.pair("broker"), broker.key + broker.certificate, 0o600)
        made = provision(fleet, numbered("board", devices), PROFILE, workspace / "devices", data="digits:?split=train")
        push = Process("push", ["push", MODEL, "--fleet", str(fleet.path)], workspace)
        push.wait(PUSH_SECONDS)
        push.check()
        with closing(open_database(fleet.database)) as database:
            record = get_variant(database, *all_variants(database)[0])
        bundles = tuple(one.bundle for one in made)
        yield Stage(workspace, fleet, bundles, record.manifest.files, port, bind, proxy)


@contextmanager
def broker(stage: Stage, *, unlimited: bool = False) -> Iterator["Broker"]:
    """The fleet's Mosquitto; `unlimited` lifts its bounds on a message and on what waits for a client."""
    fleet = stage.fleet
    listener = Listener(fleet.broker, fleet.root_certificate, fleet.broker_certificate, fleet.broker_key, stage.port, stage.bind)
    configuration = write_configuration(listener)
    text = configuration.read_text()
    if unlimited:
        text = text.replace("message_size_limit 131072", "message_size_limit 0")
        text = text.replace("max_queued_bytes 8388608", "max_queued_bytes 0").replace("persistence true", "persistence false")
    (fleet.broker / "mosquitto.db").unlink(missing_ok=True)
    write_file(configuration, text.encode(), 0o600)
    program = find_mosquitto()
    assert program is not None, "Mosquitto is not installed"
    with (fleet.broker / "mosquitto.log").open("ab") as log:
        child = subprocess.Popen([program, "-c", str(configuration)], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_ready(listener, lambda: None)
        yield Broker(child.pid)
    finally:
        child.kill()
        child.wait()


@dataclass(slots=True)
class Broker:
    """A running broker; `peak` is the most memory that `look` has seen it use, in bytes."""

    pid: int
    peak: int = 0

    def look(self) -> None:
        """Take note of its memory."""
        self.peak = max(self.peak, resident(self.pid))


@contextmanager
def server(stage: Stage) -> Iterator[Process]:
    """`edgefl serve`, connected."""
    log = stage.workspace / "server.log"
    log.unlink(missing_ok=True)
    process = Process("server", ["serve", "--fleet", str(stage.fleet.path)], stage.workspace)
    try:
        process.wait_for("serving fleet", 60.0)
        yield process
    finally:
        process.stop()
        process.wait(30.0)
