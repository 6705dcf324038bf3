"""The agent: the process on the board that is always alive. It performs what the session machines decide.

Model: one thread, one loop: poll the link (and the trainer's pipe), turn what happened into events, step the machines, perform
their effects, repeat. Per model there is a `Session` (floor 3) and a `ModelState` on disk; files come through one `Fetcher`;
training happens in one `TrainerProcess`.

Rules:

* Nothing that arrives can end the agent: what is not believed is dropped, counted and reported by name.
* An effect is performed before the next event is looked at; what it makes happen (a file that is already there, a training
  that cannot start) comes back as an event.
* The agent loads neither ONNX Runtime nor torch.
"""

import logging
import random
import time
from collections import deque
from collections.abc import Callable

from edgefl.device.config import Bundle
from edgefl.device.events import (
    Activate,
    Adopt,
    Announce,
    Connected,
    Effect,
    Event,
    Fetch,
    Fetched,
    ManifestHeard,
    OrderHeard,
    ReceiptHeard,
    Send,
    Settle,
    StopTraining,
    Tick,
    Train,
    Trained,
    TrainingFailed,
)
from edgefl.device.fetching import Fetcher
from edgefl.device.held import HeldModel, held_model
from edgefl.device.job import Done
from edgefl.device.resources import peak_rss
from edgefl.device.session import step, wake_at
from edgefl.device.training import TrainerProcess
from edgefl.device.trust import believed_manifest, believed_order
from edgefl.device.voice import Voice
from edgefl.errors import MachineError, PeerError
from edgefl.link import contract as link_events
from edgefl.link.contract import Link
from edgefl.store.blobs import BlobStore
from edgefl.store.outbox import read_entry, read_update
from edgefl.wire import topics
from edgefl.wire.messages import Receipt, Report, decode

log = logging.getLogger("edgefl.device")

LONGEST_WAIT = 1.0
PROGRESS_EVERY = 5.0
"""Seconds between two progress reports of a download."""
DISK_PAUSE = 15.0
"""Seconds to wait after the disk has failed."""
RESERVE = 16 << 20
"""Bytes of disk that models leave free for everybody else."""


class Agent:
    """The device's main loop.

    Args:
        bundle: configuration and certificates.
        link: to the broker, whose will is this session's death.
        session: number of this start.
        clock: monotonic seconds.
        wall: seconds since 1970.
        rng: of pauses.
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
    ) -> None:
        self._config = bundle.config
        self._link = link
        self._voice = Voice(bundle.config, link, session)
        self._clock = clock
        self._wall = wall
        self._blobs = BlobStore(bundle.state / "blobs")
        self._root = bundle.state / "models"
        rng = rng or random.Random()  # noqa: S311 - jitter is no secret
        self._fetcher = Fetcher(
            bundle.config.id, link, self._blobs, bundle.state / "partial", reserve=RESERVE, clock=clock, rng=rng
        )
        self._trainer = TrainerProcess(bundle.config.threads, bundle.config.memory_mb, bundle.state / "trainer.log", clock)
        self._jobs: deque[tuple[HeldModel, Train]] = deque()
        self._training: HeldModel | None = None
        self._progress_at = 0.0
        self._models = {
            path.name: held_model(bundle.config.id, path.name, self._root, self._blobs)
            for path in (self._root.iterdir() if self._root.is_dir() else ())
        }

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Work until told to stop."""
        self._link.subscribe(topics.manifest("+", self._config.profile))
        self._link.subscribe(topics.receipt(self._config.id))
        for model in self._models.values():
            self._follow_orders(model)
        try:
            while not should_stop():
                self._turn()
        finally:
            self._trainer.cancel()
            self._fetcher.close()

    def _turn(self) -> None:
        for event in self._link.poll(self._wait(), self._trainer.wake):
            self._on_link(event)
        self._fetcher.tick()
        self._collect_files()
        now = self._clock()
        for model in list(self._models.values()):
            at = wake_at(model.session)
            if at is not None and at <= now:
                self._happen(model, Tick())
            if model.retry_at is not None and model.retry_at <= now:
                model.retry_at = None
                self._look_again(model)
        self._poll_trainer()  # last, so that a training wanted in this turn begins before the next wait
        if now >= self._progress_at:
            self._progress_at = now + PROGRESS_EVERY
            self._report_progress()

    def _wait(self) -> float:
        times = [at for model in self._models.values() for at in (wake_at(model.session), model.retry_at) if at is not None]
        until = min(times) - self._clock() if times else LONGEST_WAIT
        return max(0.0, min(LONGEST_WAIT, until, self._fetcher.wait()))

    # What arrives

    def _on_link(self, event: link_events.Event) -> None:
        match event:
            case link_events.Connected():
                log.info("connected")
                self._be_born()
                self._fetcher.reconnected()
                for model in list(self._models.values()):
                    self._happen(model, Connected())
            case link_events.Disconnected(reason):
                log.warning("no connection: %s", reason)
            case link_events.Arrived(topic, payload, _):
                try:
                    self._on_message(topic, payload)
                except PeerError as error:
                    log.warning("not believed: %s", error)
                    self._report("", 0, 0, "failed", error=str(error))
            case link_events.Refused(topic_filter):
                log.error("the broker does not let this device subscribe to %s", topic_filter)

    def _on_message(self, topic: str, payload: bytes) -> None:
        kind, name = topics.parse_down(topic)
        if not payload:
            return  # a retained message that was cleared
        if kind == "block":
            self._fetcher.arrived(payload)
        elif kind == "receipt":
            receipt = decode(payload, Receipt)
            if receipt.model in self._models:
                self._happen(self._models[receipt.model], ReceiptHeard(receipt))
        elif kind == "manifest":
            self._on_manifest(name, payload)
        elif name in self._models:
            self._models[name].order_heard = payload
            self._on_order(self._models[name], payload)

    def _on_manifest(self, name: str, payload: bytes) -> None:
        manifest = believed_manifest(payload, name, self._config, self._wall())
        if name not in self._models:
            self._models[name] = held_model(self._config.id, name, self._root, self._blobs)
        model = self._models[name]
        model.manifest_heard = payload
        model.remember(manifest, payload)
        self._happen(model, ManifestHeard(manifest))

    def _on_order(self, model: HeldModel, payload: bytes) -> None:
        active = model.session.active
        if active is None:
            return  # looked at again when there is one
        order = believed_order(payload, active, self._wall())
        model.remember_order(order, payload)
        self._happen(model, OrderHeard(order))

    def _look_again(self, model: HeldModel) -> None:
        """Consider the newest announcements once more, after the state has changed under them."""
        try:
            if model.manifest_heard:
                self._on_manifest(model.name, model.manifest_heard)
            if model.order_heard:
                self._on_order(model, model.order_heard)
        except PeerError as error:
            log.info("still not believed: %s", error)

    def _poll_trainer(self) -> None:
        answer = self._trainer.poll()
        if answer is not None and self._training is not None:
            model, self._training = self._training, None
            if isinstance(answer, Done):
                log.info("%s round %d trained in %.2f s", model.name, answer.round, answer.seconds)
                self._happen(model, Trained(answer.round, answer.sha256))
            else:
                log.warning("%s round %d failed: %s", model.name, answer.round, answer.reason)
                self._happen(model, TrainingFailed(answer.round, answer.reason))
        if not self._trainer.busy and self._jobs:
            model, train = self._jobs.popleft()
            self._training = model
            self._trainer.start(model.job(self._config, train, self._blobs))

    def _collect_files(self) -> None:
        while files := self._fetcher.completed():
            for sha256 in files:
                for model in list(self._models.values()):
                    self._happen(model, Fetched(sha256))
        if reason := self._fetcher.failure():
            log.error("fetching pauses: %s", reason)
            self._report("", 0, 0, "failed", error=reason)

    # What is done about it

    def _happen(self, model: HeldModel, event: Event) -> None:
        model.session, effects = step(model.session, event, self._clock())
        try:
            for effect in effects:
                self._perform(model, effect)
        except MachineError as error:
            log.error("%s: %s", model.name, error)
            self._report(model.name, 0, 0, "failed", error=str(error))
            model.recover(self._blobs)
            model.retry_at = self._clock() + DISK_PAUSE

    def _perform(self, model: HeldModel, effect: Effect) -> None:
        match effect:
            case Fetch(files):
                self._fetcher.need(model.name, files)
            case Activate(manifest):
                model.disk.activate(model.manifests.pop(manifest.version))
                log.info("%s@%d is active", model.name, manifest.version)
                self._activated(model)
            case Adopt(order):
                model.disk.adopt(model.orders.pop(order.weights.sha256))
                self._tidy()
            case Train():
                log.info("%s round %d training", model.name, effect.order.round)
                self._jobs.append((model, effect))
            case StopTraining():
                self._stop_training(model)
            case Send():
                self._send(model)
            case Settle(stored, reason):
                model.disk.settle()
                if not stored:
                    log.warning("%s: the server refused an update: %s", model.name, reason)
            case Announce(name, version, number, error):
                self._report(model.name, version, number, name, error=error)

    def _activated(self, model: HeldModel) -> None:
        self._tidy()
        self._follow_orders(model)
        self._be_born()
        model.retry_at = self._clock()  # an order that was heard before its version can be believed now

    def _stop_training(self, model: HeldModel) -> None:
        self._jobs = deque(job for job in self._jobs if job[0] is not model)
        if self._training is model:
            self._training = None
            self._trainer.cancel()

    def _send(self, model: HeldModel) -> None:
        entry = read_entry(model.disk.outbox)
        data = read_update(model.disk.outbox)
        if entry is not None:
            self._voice.update(model.name, entry, data)

    def _be_born(self) -> None:
        self._voice.birth(model.session.active for model in self._models.values() if model.session.active)

    def _report(self, model: str, version: int, number: int, name: str, *, percent: int = 0, error: str = "") -> None:
        received = self._link.traffic.received_bytes
        memory = peak_rss() + self._trainer.peak_rss
        self._voice.report(Report(model or "none", version, number, name, percent, received, memory, error[:500]))

    def _report_progress(self) -> None:
        for model in self._models.values():
            installing = model.session.installing
            if installing and self._link.connected:
                self._report(model.name, installing.version, 0, "fetching", percent=self._fetcher.percent(model.name))

    def _follow_orders(self, model: HeldModel) -> None:
        if model.session.active:
            self._link.subscribe(topics.round_order(model.name, model.session.active.variant))

    def _tidy(self) -> None:
        """Remove blobs and partial files that nothing needs."""
        keep: set[bytes] = set()
        for model in self._models.values():
            keep |= model.disk.needed()
            session = model.session
            keep |= {ref.sha256 for ref in session.installing.files} if session.installing else set()
            keep |= {session.work.order.weights.sha256} if session.work and session.work.order else set()
        self._blobs.keep_only(keep)
        self._fetcher.tidy(keep)
