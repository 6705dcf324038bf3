"""One file on its way to the disk: its download machine, its partial file, and the topics that it listens to."""

import contextlib
import logging
from collections.abc import Callable, Iterable

from edgefl.device.download import begin, step, wake_at
from edgefl.device.download_events import Ask, Complete, Effect, Event, GoAlone, Reject, Store, TooSlow
from edgefl.device.download_state import Download
from edgefl.errors import LinkError, SlowRetrievalError
from edgefl.link.contract import Link
from edgefl.store.partial import PartialFile
from edgefl.wire import topics
from edgefl.wire.messages import encode

log = logging.getLogger("edgefl.device")


class Assembly:
    """A file in progress. Its methods that say so return whether all its blocks are there.

    Args:
        device: id, for the topic of requests.
        link: to the broker.
        file: where the blocks go; owned from now on.
        clock: monotonic seconds.

    Attributes:
        file: the same.
        reused: how many of its blocks were found on this device.
        state: of the machine; None as long as the server has not been asked.
    """

    def __init__(self, device: str, link: Link, file: PartialFile, clock: Callable[[], float]) -> None:
        self.file = file
        self.reused = 0
        self.state: Download | None = None
        self._device = device
        self._link = link
        self._clock = clock
        self._topic = topics.block(file.ref.sha256.hex())

    @property
    def percent(self) -> int:
        """Progress, 0 to 100; 100 only when complete."""
        return 100 * self.file.have.bit_count() // len(self.file.ref.blocks)

    @property
    def alone(self) -> bool:
        """Whether the link has proved too slow for what others ask for."""
        return self.state is not None and self.state.alone

    @property
    def listens(self) -> bool:
        """Whether it hears what others ask for, of which some is here already."""
        return self.state is not None and not self.state.alone

    @property
    def wake_at(self) -> float | None:
        """When the machine wants a `Tick`; None without need."""
        return wake_at(self.state) if self.state else None

    def write(self, blocks: Iterable[tuple[int, bytes]]) -> None:
        """Store what has come from elsewhere. Raises StoreError, BlockError."""
        for index, data in blocks:
            self.file.write(index, data)

    def ask_server(self, *, alone: bool, first: int) -> bool:
        """Fetch what is still missing over MQTT. Raises as `step`."""
        self.state, effects = begin(self.file.ref, self.file.have, self._clock(), alone=alone, reused=self.reused, first=first)
        if not alone and not self.state.complete:
            self._link.subscribe(self._topic, qos=0)
        return self._perform(effects)

    def step(self, event: Event) -> bool:
        """Let the machine make a step, and do what it orders.

        Raises:
            StoreError: the disk fails.
            SlowRetrievalError: the deadline has passed.
        """
        if self.state is None:
            return False
        self.state, effects = step(self.state, event, self._clock())
        return self._perform(effects)

    def close(self) -> None:
        """Let go; what is on disk stays."""
        self.file.close()
        self._link.unsubscribe(self._topic)

    def _perform(self, effects: tuple[Effect, ...]) -> bool:
        complete = False
        for effect in effects:
            match effect:
                case Ask(request):
                    with contextlib.suppress(LinkError):  # no room in the queue: asked again when it is overdue
                        self._link.publish(topics.want(self._device), encode(request), qos=0)
                case GoAlone():
                    log.info(
                        "file %s: asking alone, the link is too slow for what others ask for", self.file.ref.sha256.hex()[:16]
                    )
                    self._link.unsubscribe(self._topic)
                    self._link.subscribe(topics.own_block(self._device), qos=0)
                case Store(index, data):
                    self.file.write(index, data)
                case Complete():
                    complete = True
                case Reject():
                    pass  # counted by the machine, which asks for the block again
                case TooSlow(missing, seconds):
                    raise SlowRetrievalError(
                        f"{missing} blocks of file {self.file.ref.sha256.hex()[:16]} are missing after {seconds:.0f} s",
                        remedy="Check the link and the broker; the device tries again by itself",
                    )
        return complete
