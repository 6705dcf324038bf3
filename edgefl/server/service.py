"""The server process: one thread that listens to the fleet and keeps rounds, blocks and announcements going.

Model: everything happens in `run`'s loop. What arrives is routed by topic to small owners (`Inbox`, `BlockServer`, `Training`);
the fleet's database is where the command line leaves its wishes (a new version, a training to start or stop), and the loop looks
there twice a second. Nothing is kept in memory that the database and the broker's retained messages could not give back.

Rules: what a device sends cannot stop the server: a message that does not decode, does not belong or does not fit is counted
and dropped. A receipt leaves after the commit.
"""

import logging
import sqlite3
import time
from collections.abc import Callable

from edgefl.errors import LinkError, MessageError, PeerError
from edgefl.identity.signing import Signer
from edgefl.link.contract import Arrived, Connected, Disconnected, Event, Link
from edgefl.server.announce import announce_manifest, announce_round
from edgefl.server.blocks import BlockServer
from edgefl.server.inbox import Inbox
from edgefl.server.traffic import TrafficBook
from edgefl.server.training import Training
from edgefl.store.blobs import BlobStore
from edgefl.store.ledger import (
    TrainingRecord,
    add_counter,
    is_stored,
    newest_manifests,
    trainings,
)
from edgefl.store.presence import heard_report, heard_state
from edgefl.store.registry import list_devices
from edgefl.wire import topics
from edgefl.wire.messages import Receipt, Report, State, UpdatePart, Want, decode, encode

LOOK_EVERY = 0.5
"""Seconds between two looks at the database."""

QUEUE_LIMIT = 2 * 1024 * 1024
"""Payload bytes that may wait in the link before block delivery pauses; round orders and receipts still find room."""

log = logging.getLogger("edgefl.server")


class Service:
    """The server of one fleet.

    Args:
        database, blobs: the fleet's.
        link: to the broker, as `edgefl-server`.
        signer: the online key.
        wall: seconds since 1970.
    """

    def __init__(
        self,
        database: sqlite3.Connection,
        blobs: BlobStore,
        link: Link,
        signer: Signer,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._link = link
        self._signer = signer
        self._wall = wall
        self._traffic = TrafficBook()
        self._inbox = Inbox()
        self._blocks = BlockServer(blobs, self._publish_block, self._room)
        self._trainings: dict[str, Training] = {}
        self._announced: dict[tuple[str, str], int] = {}
        self._devices: set[str] = set()
        self._last_look = 0.0

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Serve until told to stop.

        Raises:
            StoreError: the fleet's own files fail; nothing that was promised is lost.
        """
        self._look()
        self._link.subscribe(topics.ALL_UP)
        while not should_stop():
            self._turn()
        self._flush()

    def _turn(self) -> None:
        wait = min(LOOK_EVERY, self._blocks.wait(time.monotonic()))
        for event in self._link.poll(wait):
            self._on_event(event)
        self._blocks.advance(time.monotonic())
        if time.monotonic() - self._last_look >= LOOK_EVERY:
            self._look()
            self._last_look = time.monotonic()

    def _on_event(self, event: Event) -> None:
        match event:
            case Connected():
                log.info("connected to the broker")
                self._announced.clear()
                for training in self._trainings.values():
                    self._announce(training)
            case Disconnected(reason):
                log.warning("no connection to the broker: %s", reason)
            case Arrived(topic, payload, _):
                self._on_message(topic, payload)
            case _:
                log.error("the broker does not let the server subscribe: %s", event)

    def _on_message(self, topic: str, payload: bytes) -> None:
        try:
            device, kind = topics.parse_up(topic)
            if device not in self._devices:
                raise MessageError(f"{device} is no valid device of this fleet")
            handler = {"state": self._on_state, "want": self._on_want, "update": self._on_update, "report": self._on_report}[kind]
            handler(device, payload)
        except PeerError as error:
            log.warning("dropped a message on %s: %s", topic[:80], error)
            self._traffic.up("", len(payload))
            add_counter(self._database, "messages refused")

    def _on_state(self, device: str, payload: bytes) -> None:
        if not payload:
            return  # a retained state that was cleared
        state = decode(payload, State)
        heard_state(self._database, device, state, self._wall())
        self._traffic.up(state.models[0].model if state.models else "", len(payload))

    def _on_want(self, device: str, payload: bytes) -> None:
        request = decode(payload, Want)
        model = self._blocks.wanted(device, request, time.monotonic())
        self._traffic.up(model, len(payload))

    def _on_report(self, device: str, payload: bytes) -> None:
        report = decode(payload, Report)
        heard_report(self._database, device, report, self._wall())
        self._traffic.up(report.model, len(payload))
        if report.error:
            log.warning("%s: %s failed: %s", device, report.model, report.error)

    def _on_update(self, device: str, payload: bytes) -> None:
        head = decode(payload, UpdatePart)
        self._traffic.up(head.model, len(payload))
        data = self._inbox.add(device, head)
        if data is None:
            return
        receipt = self._judge(device, head, data)
        if not receipt.stored:
            log.warning("refused an update of %s for %s@%d: %s", device, head.model, head.version, receipt.reason)
            add_counter(self._database, "updates refused")
        self._send(head.model, topics.receipt(device), encode(receipt), retain=False)
        self._advance(head.model)

    def _judge(self, device: str, head: UpdatePart, data: bytes) -> Receipt:
        training = self._trainings.get(head.model)
        if training is not None and training.record.version == head.version:
            return training.receive(device, head, data)
        stored = is_stored(self._database, device, head)
        reason = "" if stored else f"{head.model}@{head.version} is not in training"
        return Receipt(head.model, head.version, head.round, head.sha256, stored=stored, reason=reason)

    def _advance(self, model: str) -> None:
        training = self._trainings.get(model)
        if training is None or training.state.finished:
            return
        self._flush()
        closed = training.advance()
        if closed is not None:
            self._announce(training)
            accuracy = "" if closed.evaluation is None else f", accuracy {closed.evaluation.accuracy:.4f}"
            log.info("%s@%d round %d: %d updates%s", model, training.record.version, closed.round, closed.updates, accuracy)

    def _look(self) -> None:
        """Take up what the command line has left in the database."""
        self._devices = {device.id for device in list_devices(self._database) if device.revoked is None}
        for variant in newest_manifests(self._database):
            key, manifest = (variant.manifest.model, variant.profile), variant.manifest
            self._blocks.offer(manifest.model, manifest.files)
            if self._link.connected and self._announced.get(key) != manifest.version:
                announce_manifest(self._publish, variant)
                self._announced[key] = manifest.version
        for record in {record.model: record for record in trainings(self._database)}.values():
            training = self._trainings.get(record.model)
            if training is None or training.record.id != record.id:
                self._begin(record)
            elif record.state != "running" and not training.state.finished:
                training.stop()
                self._announce(training)
                log.info("training of %s@%d was stopped", record.model, record.version)
            self._advance(record.model)
        self._flush()

    def _begin(self, record: TrainingRecord) -> None:
        self._flush()
        training = Training(self._database, self._blobs, record, self._wall)
        if record.state != "running":
            training.stop()
        self._trainings[record.model] = training
        log.info("%s@%d: %s, round %d", record.model, record.version, record.state, training.state.number)
        self._announce(training)

    def _announce(self, training: Training) -> None:
        refs = announce_round(self._publish, self._blobs, self._signer, training, self._wall())
        self._blocks.offer(training.record.model, refs)

    def _publish(self, model: str, topic: str, payload: bytes) -> None:
        self._send(model, topic, payload, retain=True)

    def _send(self, model: str, topic: str, payload: bytes, *, retain: bool) -> None:
        try:
            self._link.publish(topic, payload, retain=retain)
        except LinkError as error:
            log.warning("cannot publish on %s: %s", topic, error)
            return
        self._traffic.down(model, len(payload))

    def _publish_block(self, model: str, topic: str, payload: bytes) -> None:
        if self._link.connected:
            self._link.publish(topic, payload, qos=0)
            self._traffic.down(model, len(payload))

    def _room(self) -> int:
        return max(0, QUEUE_LIMIT - self._link.outgoing) if self._link.connected else 0

    def _flush(self) -> None:
        self._traffic.flush(
            self._database, {m: (t.record.id, t.state.number) for m, t in self._trainings.items() if not t.state.finished}
        )
