"""A toy board in the field: the agent in a thread, with a real link through a faulty proxy to a real Mosquitto.

No test in here. A test module imports it by its name (`pythonpath` in pyproject.toml). The scripted server is
`toyoffice`'s, the scripted engine `toytrainer`'s; broker, TLS, sockets, timers and files are real.
"""

import random
import subprocess
import threading
import time
from functools import partial

import faultyproxy as proxies
import toyboard as toy
from edgefl.brokers.mosquitto import find_mosquitto, write_configuration
from edgefl.cli.broker import listener_of
from edgefl.device import hands
from edgefl.link.address import BrokerAddress
from edgefl.link.contract import Arrived, Disconnected
from edgefl.link.paho import PahoLink
from edgefl.names import SERVER
from edgefl.server.founding import create_fleet
from edgefl.server.provision import provision
from edgefl.wire import topics
from toyclock import START
from toyoffice import DEVICE
from toytrainer import InlineTrainer, ScriptedEngine

OTHER = "cam-02"
"""A second device of the fleet, for whoever wants to be a neighbour."""


class Hasty(random.Random):
    """Jitter for tests: what is drawn from a long range is short."""

    def uniform(self, a, b):
        """As always, but at most 0.3."""
        return min(super().uniform(a, b), 0.3)


class RealClock:
    """The toy's clock, driven by the real one."""

    def __init__(self):
        self._began = time.monotonic()
        self.monotonic = time.monotonic

    def wall(self):
        """Seconds since 1970 in the toy's world."""
        return START + time.monotonic() - self._began


class Field:
    """A fleet with Mosquitto, a proxy before it, and a board behind the proxy.

    Attributes:
        board: a toy board whose links are real.
        proxy: between the board and the broker.
        losses: why the board's connection was lost, with the times.
    """

    def __init__(self, root, fleet, monkeypatch, keepalive=30, limits=()):
        self.root, self.fleet, self.keepalive, self.limits = root, fleet, keepalive, dict(limits)
        self.losses, self._links, self._stop = [], [], threading.Event()
        self._process = self._thread = None
        self.start_broker(fresh=True)
        self.proxy = proxies.FaultyProxy(fleet.settings.port)
        monkeypatch.setattr(hands, "TrainerProcess", InlineTrainer)
        monkeypatch.setattr("edgefl.device.trainer.open_engine", ScriptedEngine)
        self.board = toy.Board(root / "board", clock=RealClock(), broker=self, connect=Field.link)
        self.office = self.board.office
        self.office.turn = partial(turn, self.office)
        self.wait(lambda: self.office.link.connected)

    def link(self, name, direct=False, **options):
        """A real link: the server's straight to the broker, everybody else's through the proxy."""
        fleet = self.fleet
        if name == SERVER:
            files, port = (fleet.root_certificate, fleet.server_certificate, fleet.server_key), fleet.settings.port
        else:
            bundle = fleet.path.parent / "bundles" / name
            files = (bundle / "ca.crt", bundle / "device.crt", bundle / "device.key")
            port = fleet.settings.port if direct else self.proxy.port
            options = {"keepalive": self.keepalive, **options}
        link = PahoLink(BrokerAddress("127.0.0.1", port, *files), name, rng=Hasty(0), **options)
        self._links.append(link)
        return link

    def start_broker(self, fresh=False):
        """Mosquitto, with other limits if the test has some; `fresh` without a memory."""
        listener = listener_of(self.fleet)
        configuration = write_configuration(listener)
        text = configuration.read_text()
        for line, instead in self.limits.items():
            assert line in text
            text = text.replace(line, instead)
        configuration.write_text(text)
        if fresh:
            (listener.directory / "mosquitto.db").unlink(missing_ok=True)
        self._process = subprocess.Popen([find_mosquitto(), "-c", str(configuration)], stderr=subprocess.DEVNULL)

    def kill_broker(self):
        """SIGKILL."""
        self._process.kill()
        self._process.wait()

    def start_board(self):
        """Let the agent run, in a thread of its own."""
        self.board.start()
        agent, link = self.board.agent, self.board.link
        poll = link.poll

        def watched(*arguments):
            events = poll(*arguments)
            self.losses += [(time.monotonic(), event.reason) for event in events if isinstance(event, Disconnected)]
            return events

        link.poll = watched

        def run():
            while not self._stop.is_set():
                agent._turn()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        self.wait(lambda: link.connected)
        return self.board

    def wait(self, until, seconds=120.0):
        """Let the server work until something has happened; after how many seconds it had."""
        began = time.monotonic()
        while not until():
            said = (self.office.steps()[-5:], self.office.errors()[-3:], [s.online for s in self.office.states[-5:]])
            assert time.monotonic() < began + seconds, (said, self.losses)
            self.office.turn()
            time.sleep(0.002)
        return time.monotonic() - began

    def work(self, seconds):
        """Let the server work for so long."""
        end = time.monotonic() + seconds
        self.wait(lambda: time.monotonic() >= end, seconds + 5.0)

    def close(self):
        """End everybody."""
        self._stop.set()
        if self._thread:
            self._thread.join(10.0)
            self.board.agent._hands.close()
        for link in self._links:
            link.close(0.0)
        self.proxy.__exit__()
        self.kill_broker()


def turn(office):
    """The office's turn on a real link: what comes while it answers waits for its next turn."""
    for event in office.link.poll(0.0):
        if isinstance(event, Arrived) and event.payload:
            _, kind = topics.parse_up(event.topic)
            getattr(office, f"_on_{kind}")(event.payload)


def found(root):
    """A fleet with the toy's device and a neighbour; made once for a module, because keys take time."""
    fleet = create_fleet(root / "fleet", name="field", host="127.0.0.1", port=_free_port())
    provision(fleet, [DEVICE, OTHER], "rpi-zero-2w", root / "bundles")
    return fleet


def _free_port():
    with proxies.socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]
