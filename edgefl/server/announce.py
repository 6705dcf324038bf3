"""What the server tells all devices: metadata, manifests and round orders; and each device its assignment. All retained.

Model: the broker keeps the last announcement of each topic for devices that come later. The announcer knows what it has said on
this connection, so it can be asked to say everything again and again, and publishes only what is new. A new connection may be to
a broker that has lost everything: then all of it is news. Manifests are believed because the metadata lists them; round orders
and assignments are signed here by the online key.

Rule: the timestamp is said after everything that it vouches for. What the link had no room for has not been said.
"""

from collections.abc import Callable, Hashable, Mapping
from functools import partial

import msgspec

from edgefl.identity.repository import TIMESTAMP
from edgefl.identity.signing import ASSIGNMENT, ROUND, Signer
from edgefl.server.catalogue import Catalogue
from edgefl.server.rounds import widened
from edgefl.server.training import Training
from edgefl.store.versions import VariantRecord
from edgefl.wire import topics
from edgefl.wire.files import FileRef
from edgefl.wire.messages import encode
from edgefl.wire.releases import Assigned, Assignment
from edgefl.wire.rounds import RoundOrder
from edgefl.wire.tasks import task_of

ORDER_SECONDS = 86400 * 7
"""How long a round order or an assignment is valid: an old one cannot be replayed for ever."""
RENEW_SECONDS = 86400
"""How long until an order is signed anew, so that a round or a final order that stands for weeks stays valid."""

Publish = Callable[[str, str, bytes], bool]
"""Model, topic, payload: publish retained, and count the bytes for the model; whether the link has taken it."""


class Announcer:
    """Says what is new.

    Args:
        publish: how to say it.
        signer: the online key.
        wall: seconds since 1970.
    """

    def __init__(self, publish: Publish, signer: Signer, wall: Callable[[], float]) -> None:
        self._publish = publish
        self._signer = signer
        self._wall = wall
        self._said: dict[str, Hashable] = {}

    def forget(self) -> None:
        """The broker may have lost what was said."""
        self._said.clear()

    def everything(self, catalogue: Catalogue) -> None:
        """Say what is new since the connection was made."""
        for record in catalogue.announced:
            self.manifest(record)
        self.metadata(catalogue.documents)
        for device, (counter, models) in catalogue.assigned.items():
            self.assignment(device, counter, models)
        for device in catalogue.revoked:
            self._take_back("", topics.assignment(device))
        for training in catalogue.trainings.values():
            self.round(training)
        for model, variant in catalogue.ended:
            self._take_back(model, topics.round_order(model, variant))
        for model, profile, version in catalogue.taken_back:
            self._take_back(model, topics.manifest(model, profile, version))

    def metadata(self, documents: Mapping[str, bytes]) -> None:
        """The fleet's TUF metadata, the timestamp last."""
        for name, data in sorted(documents.items(), key=lambda item: item[0] == TIMESTAMP):
            self._say("", topics.metadata(name), data, partial(bytes, data))

    def assignment(self, device: str, counter: int, models: tuple[Assigned, ...]) -> None:
        """What one device is to hold."""
        now = int(self._wall())
        news = (counter, now // RENEW_SECONDS)

        def signed() -> bytes:
            assignment = Assignment(device, counter, now, now + ORDER_SECONDS, models)
            return encode(self._signer.sign(ASSIGNMENT, encode(assignment)))

        self._say("", topics.assignment(device), news, signed)

    def manifest(self, record: VariantRecord) -> None:
        """One variant, to the devices of its profile that are to hold it."""
        model, version = record.manifest.model, record.manifest.version
        self._say(model, topics.manifest(model, record.profile, version), record.encoded, partial(bytes, record.encoded))

    def round(self, training: Training) -> None:
        """The open round, or the final weights when the training has ended, to the devices of every variant."""
        record, state = training.record, training.state
        now = self._wall()
        news = (record.id, state.number, state.finished, now // RENEW_SECONDS, widened(state, now))
        for variant, ref in training.offer.files.items():
            topic = topics.round_order(record.model, variant)
            self._say(record.model, topic, news, partial(self._order, training, variant, ref))

    def _order(self, training: Training, variant: str, ref: FileRef) -> bytes:
        record, state = training.record, training.state
        plan = msgspec.structs.replace(record.plan, fraction=widened(state, self._wall()))
        task = None if state.finished else task_of(plan, state.number - record.first + 1, training.loss)
        expires = int(self._wall()) + ORDER_SECONDS
        order = RoundOrder(
            record.model, record.version, variant, state.number, ref, task, expires, training.offer.differences[variant]
        )
        return encode(self._signer.sign(ROUND, encode(order)))

    def _take_back(self, model: str, topic: str) -> None:
        """Nobody is to hear this any more."""
        self._say(model, topic, b"", bytes)

    def _say(self, model: str, topic: str, news: Hashable, payload: Callable[[], bytes]) -> None:
        if self._said.get(topic) != news and self._publish(model, topic, payload()):
            self._said[topic] = news
