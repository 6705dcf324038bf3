"""The agent: the process on the board that is always alive. It hears, lets the session machines decide, and has it done.

Model: one thread, one loop: poll the link (and the trainer's pipe), turn what happened into events, step the machines, have their
effects performed, repeat. Per model there is a `HeldModel` with its `Session` (floor 3) and its folder on disk; what the machines
order is done by `Hands`.

Rules:

* Nothing that arrives, and no fault of the disk, can end the agent: what is not believed is dropped and reported by name.
* An effect is performed before the next event is looked at; what it makes happen (a file that is already there, a training
  that cannot start) comes back as an event.
* The agent loads neither ONNX Runtime nor torch.
"""

import logging
import random
import time
from collections.abc import Callable
from pathlib import Path

from edgefl.device.config import Bundle
from edgefl.device.events import Connected, Fetched, ReceiptHeard, Tick
from edgefl.device.following import Following
from edgefl.device.hands import Hands
from edgefl.device.held import HeldModel
from edgefl.device.progress import Seen
from edgefl.device.resources import give_back
from edgefl.device.rotation import Rotation
from edgefl.device.session import wake_at
from edgefl.errors import EdgeflError, PeerError, StoreError
from edgefl.link import contract as link_events
from edgefl.link.contract import Link
from edgefl.names import is_id
from edgefl.store.model_state import ModelState
from edgefl.wire import topics
from edgefl.wire.messages import decode
from edgefl.wire.rounds import Receipt

log = logging.getLogger("edgefl.device")

LONGEST_WAIT = 1.0
SENDING_WAIT = 0.05
"""Seconds between two looks whether the link has room for the next part of an update."""
PROGRESS_EVERY = 5.0
"""Seconds between two progress reports of a download."""


class Agent:
    """The device's main loop.

    Args:
        bundle: configuration and certificates.
        link: to the broker, whose will is this session's death.
        session: number of this start.
        clock: monotonic seconds.
        wall: seconds since 1970.
        rng: of pauses.
        pulse: called after every turn with what the agent sees then.
        signed_at: told when the server has signed something that is believed (seconds since 1970): it is not earlier than that.

    Raises:
        StoreError: the state directory cannot be used.
    """

    def __init__(
        self,
        bundle: Bundle,
        link: Link,
        session: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        rng: random.Random | None = None,
        pulse: Callable[[Seen], None] | None = None,
        signed_at: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._config = bundle.config
        self._pulse = pulse
        self._link = link
        self._clock = clock
        self._wall = wall
        self._root = bundle.state / "models"
        rng = rng or random.Random()  # noqa: S311 - jitter is no secret
        self._hands = Hands(bundle, link, session, clock=clock, wall=wall, rng=rng)
        self._rotation = Rotation(bundle, link, clock=clock, wall=wall, rng=rng)
        self._models = self._hands.models
        self._following = Following(bundle, link, clock=clock, wall=wall, signed_at=signed_at)
        self._models.update({name: self._held(name) for name in _folders(self._root)})
        self._progress_at = 0.0
        self._untidy = True

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Work until told to stop."""
        self._begin()
        try:
            while not should_stop():
                self._turn()
                if self._pulse:
                    self._pulse(self._seen())
        finally:
            self._hands.close()

    def _begin(self) -> None:
        self._following.begin()
        self._link.subscribe(topics.receipt(self._config.id))
        self._link.subscribe(topics.certificate(self._config.id))
        for model in self._models.values():
            self._hands.follow_orders(model)
            model.retry_at = self._clock()  # a version with damaged files is repaired without waiting to hear of it again

    def _turn(self) -> None:
        hands = self._hands
        for event in self._link.poll(self._wait(), (*hands.trainings.wake, *hands.fetcher.wake)):
            self._on_link(event)
        self._follow()
        hands.fetcher.tick()
        self._rotation.tick()
        self._collect_files()
        now = self._clock()
        for model in list(self._models.values()):
            at = wake_at(model.session)
            if at is not None and at <= now:
                hands.happen(model, Tick())
            if model.retry_at is not None and model.retry_at <= now:
                model.retry_at = None
                for word in model.hear_again(self._wall(), self._following.online_key):
                    hands.happen(model, word)
        hands.sender.advance()
        for model, outcome in hands.trainings.advance():  # last, so that a training wanted in this turn begins before the wait
            hands.happen(model, outcome)
        if now >= self._progress_at:
            self._progress_at = now + PROGRESS_EVERY
            hands.report_progress()
            if self._untidy:  # metadata has been read, which takes megabytes for a moment
                self._untidy = False
                give_back()

    def _seen(self) -> Seen:
        trainings = self._hands.trainings
        return Seen(self._link.connected, self._link.traffic.attempts, trainings.busy, trainings.cpu, len(self._models))

    def _wait(self) -> float:
        times = [at for model in self._models.values() for at in (wake_at(model.session), model.retry_at) if at is not None]
        until = min(times) - self._clock() if times else LONGEST_WAIT
        longest = SENDING_WAIT if self._hands.sender.busy else LONGEST_WAIT
        return max(0.0, min(longest, until, self._hands.fetcher.wait(), self._following.wait()))

    def _on_link(self, event: link_events.Event) -> None:
        match event:
            case link_events.Connected():
                log.info("connected")
                self._hands.be_born()
                self._rotation.connected()
                self._hands.fetcher.reconnected()
                for model in list(self._models.values()):
                    self._hands.happen(model, Connected())
            case link_events.Disconnected(reason):
                log.warning("no connection: %s", reason)
            case link_events.Arrived(topic, payload, _):
                try:
                    self._on_message(topic, payload)
                except PeerError as error:
                    self._not_believed(error)
                except StoreError as error:
                    self._hands.voice.trouble("", str(error), code=error.code)
            case link_events.Refused(topic_filter):
                self._hands.voice.trouble("", f"the broker does not let this device subscribe to {topic_filter}")

    def _on_message(self, topic: str, payload: bytes) -> None:
        kind, name = topics.parse_down(topic)
        if not payload:
            return  # a retained message that was cleared
        if kind == "block":
            self._hands.fetcher.arrived(payload)
        elif kind == "certificate":
            self._rotation.heard(payload)
        elif kind == "receipt":
            receipt = decode(payload, Receipt)
            if receipt.model in self._models:
                self._hands.happen(self._models[receipt.model], ReceiptHeard(receipt))
        elif kind in {"tuf", "assignment", "manifest"}:
            self._following.hear(kind, name, payload)
            self._follow()
            self._untidy = True
        elif name in self._models:
            order = self._models[name].hear_order(payload, self._wall(), self._following.online_key)
            if order is not None:
                self._hands.happen(self._models[name], order)

    def _follow(self) -> None:
        """Hear the manifests that have become believed."""
        try:
            for manifest, payload in self._following.advance():
                name = manifest.model
                model = self._models[name] = self._models.get(name) or self._held(name)
                self._hands.happen(model, model.hear_manifest(manifest, payload, self._following.rollout(name)))
        except (PeerError, StoreError) as error:
            self._not_believed(error)

    def _not_believed(self, error: EdgeflError) -> None:
        self._hands.voice.trouble("", f"not believed: {error}" if isinstance(error, PeerError) else str(error), code=error.code)

    def _collect_files(self) -> None:
        while files := self._hands.fetcher.completed():
            for sha256 in files:
                for model in list(self._models.values()):
                    self._hands.happen(model, Fetched(sha256))
        if trouble := self._hands.fetcher.failure():
            self._hands.voice.trouble("", f"fetching pauses: {trouble}", code=trouble.code)
            self._hands.tidy()  # what is not needed any more may be what fills the disk

    def _held(self, name: str) -> HeldModel:
        return HeldModel(name, self._config, ModelState(self._root / name), self._hands.blobs)


def _folders(root: Path) -> list[str]:
    """Names of the models that have a folder; what else lies there is none of ours."""
    return sorted(path.name for path in root.glob("*") if is_id(path.name) and path.is_dir())
