"""Who takes part in a check: the broker under test, and clients with certificates made for the occasion.

Model: the *scene* is the broker's address and the fleet's authority. The *cast* is the observer, who may play the server towards
the two devices of the check and sees what they say, and these devices, `check-a` and `check-b`. They are in no registry, so that
a running server takes no notice of what they say. The server's own identity is never used: connecting with it would take the
running server's place and its queue.
"""

import datetime as dt
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from edgefl.brokers.acl import OBSERVED
from edgefl.brokers.wallet import Wallet
from edgefl.identity.authority import Authority, found_authority
from edgefl.link.address import BrokerAddress
from edgefl.link.contract import Message
from edgefl.link.probe import Probe
from edgefl.names import CHECK_DEVICES, OBSERVER
from edgefl.wire.topics import ROOT

A, B = CHECK_DEVICES


@dataclass(frozen=True)
class Scene:
    """The broker under test.

    Attributes:
        host, port: where devices reach it.
        authority: of the fleet.
        directory: `FLEET/broker`.
        wallet: for the identities of the check.
    """

    host: str
    port: int
    authority: Authority
    directory: Path
    wallet: Wallet
    _known: dict[str, BrokerAddress] = field(default_factory=dict)

    def address(self, name: str) -> BrokerAddress:
        """The broker with a valid certificate in this name."""
        if name not in self._known:
            self._known[name] = self.wallet.address(self.authority.probe(name))
        return self._known[name]

    def foreign(self) -> BrokerAddress:
        """The same with a certificate in a valid name, issued by an authority of the same name that nobody knows."""
        stranger, _ = found_authority(self.authority.fleet)
        return self.wallet.address(stranger.probe(A))

    def expired(self) -> BrokerAddress:
        """The same with a certificate whose time is over."""
        then = dt.datetime.now(dt.UTC) - dt.timedelta(days=10)
        return self.wallet.address(self.authority.probe(A, now=then, days=5))

    def connect(self, name: str, *, will: Message | None = None, clean_session: bool = True) -> Probe:
        """A client with a valid certificate in this name."""
        return Probe(self.address(name), name, will=will, clean_session=clean_session)


def up(device: str, last: str) -> str:
    """A topic that this device may write to."""
    return f"{ROOT}/up/{device}/{last}"


def down(device: str, last: str) -> str:
    """A topic that this device may read."""
    return f"{ROOT}/down/{device}/{last}"


class Cast:
    """Observer and devices, connected when they are first needed; use it as a context manager."""

    def __init__(self, scene: Scene) -> None:
        """Connect the observer."""
        self.scene = scene
        self._numbers = itertools.count()
        self._devices: dict[str, Probe] = {}
        self._observer = self._watch()

    @property
    def observer(self) -> Probe:
        """The observer, connected again if a broker has thrown it out for what it did."""
        if self._observer.accepted and not self._observer.alive:
            self._observer = self._watch()
        return self._observer

    def _watch(self) -> Probe:
        probe = self.scene.connect(OBSERVER)
        for prefix in OBSERVED:
            probe.subscribe(f"{prefix}/#")
        return probe

    def device(self, name: str) -> Probe:
        """This device, connected; a broker may have thrown it out for what it tried."""
        probe = self._devices.get(name)
        if probe is None or not probe.alive:
            return self.fresh(name)
        return probe

    def fresh(self, name: str, *filters: str) -> Probe:
        """This device with a new connection, which listens to its own topics and to these filters."""
        if name in self._devices:
            self._devices[name].close()
        probe = self._devices[name] = self.scene.connect(name)
        for topic_filter in (down(name, "#"), *filters):
            probe.subscribe(topic_filter)
        return probe

    def leave(self, name: str) -> None:
        """Let this device go, if it is there."""
        if name in self._devices:
            self._devices.pop(name).close()

    def observer_hears(self, name: str) -> bool:
        """Whether the observer hears what this device says now, and therefore has heard what was said before and passed on."""
        probe, payload = self.device(name), b"%d" % next(self._numbers)
        probe.publish(up(name, "after"), payload)
        return self.observer.hears(up(name, "after"), payload)

    def device_hears(self, name: str) -> bool:
        """Whether this device hears what the observer says to it now, and therefore has heard everything before."""
        probe, payload = self.device(name), b"%d" % next(self._numbers)
        self.observer.publish(down(name, "after"), payload)
        return probe.hears(down(name, "after"), payload)

    def __enter__(self) -> "Cast":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for probe in (*self._devices.values(), self.observer):
            probe.close()
