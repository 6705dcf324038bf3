"""The scripted server of a toy board: it has one model, signs what a real one would, and answers as a test wants.

No test in here. A test module imports it by its name (`pythonpath` in pyproject.toml).
"""

import hashlib
from collections import defaultdict

import msgspec
import numpy as np

from edgefl.codec.history import History
from edgefl.codec.update import decode as decode_update
from edgefl.codec.weights import Precision, encode_weights
from edgefl.identity.repository import found, with_targets
from edgefl.identity.signing import ASSIGNMENT, ROUND, Signer
from edgefl.link.contract import Arrived
from edgefl.link.memory import MemoryLink
from edgefl.names import SERVER
from edgefl.wire import topics
from edgefl.wire.blocks import block_length, file_ref, wanted
from edgefl.wire.files import BLOCK_SIZE, Block, Want
from edgefl.wire.messages import decode, encode
from edgefl.wire.presence import Report, State
from edgefl.wire.releases import Assigned, Assignment, Manifest
from edgefl.wire.rounds import Receipt, RoundOrder, Task, UpdatePart
from toyclock import START
from toytrainer import LAYOUT

DEVICE, PROFILE, MODEL, VARIANT = "cam-01", "toy-profile", "toy", "w1-fp32"
TASK = Task(epochs=1, learning_rate=0.1, sparsity=0.05, bits=3, fraction=1.0, seed=0, context=True)


class Office:
    """A scripted server.

    Attributes:
        receipts: `store` them, `refuse` them, or stay `silent`.
        serves: whether it answers requests for blocks.
        alone: requests to be served alone.
        updates: heads and bytes of whole updates as they arrived, by round.
        reports, states: what the device has said.
    """

    def __init__(self, broker, clock, connect=MemoryLink):
        """Connect; `connect` makes a link of a broker and an identity."""
        self.broker, self.clock = broker, clock
        self.link = connect(broker, SERVER, clean_session=False)
        self.link.subscribe(topics.ALL_UP)
        self.link.poll(0.0)
        self.receipts, self.serves = "store", True
        self.updates, self.reports, self.states = defaultdict(list), [], []
        self.files, self.vectors = {}, {}
        self.found()
        self._parts = defaultdict(dict)
        self.alone = 0

    def found(self, now=START):
        """Become another fleet's server, with keys and metadata of its own."""
        self.root, self.release, self.online = Signer.generate(), Signer.generate(), Signer.generate()
        self.documents = dict(found([self.root], [self.release], self.online, now, thresholds={}))
        self.listed, self.assigned, self.counter = {}, {}, 0

    @property
    def fleet(self):
        """The fleet's id."""
        return hashlib.sha256(self.documents["1.root"]).hexdigest()

    def offer(self, role, data):
        """Have a file."""
        ref = file_ref(role, data)
        self.files[ref.sha256] = (ref, data)
        return ref

    def manifest(self, version=1, graphs=None, announce=True, **changes):
        """List a version, assign it and announce it; its manifest and message."""
        contents = graphs or {"train": b"train %d" % version, "eval": b"eval", "infer": b"infer"}
        weights = encode_weights(np.zeros(LAYOUT.size, dtype=np.float32), LAYOUT, Precision.FP32)
        files = tuple(self.offer(role, data) for role, data in {**contents, "weights": weights}.items())
        manifest = Manifest(
            model=MODEL, version=version, profile=PROFILE, variant=VARIANT, engine="portable", layout=LAYOUT, input_shape=(5,),
            classes=3, batch=4, files=files, round_key=self.online.public_key, created=int(START), expires=int(START) + 10**8,
        )  # fmt: skip
        manifest = msgspec.structs.replace(manifest, **changes)
        payload = encode(manifest)
        if announce:
            self.list_manifest(manifest)
            self.assign(manifest.version, manifest.model)
            self.say(topics.manifest(manifest.model, manifest.profile, manifest.version), payload)
        return manifest, payload

    def list_manifest(self, manifest):
        """Let the metadata list a manifest, and announce the metadata."""
        self.listed[topics.target_path(manifest.model, manifest.profile, manifest.version)] = encode(manifest)
        self.publish(with_targets(self.documents, self.listed, [self.release], self.online, self.clock.wall()))

    def publish(self, changed):
        """Put metadata into force and announce it."""
        self.documents |= changed
        for name, data in sorted(self.documents.items(), key=lambda item: item[0] == "timestamp"):
            self.say(topics.metadata(name), data)

    def assign(self, version, model=MODEL, *, signer=None, announce=True, rollout=0, **changes):
        """Let the device hold a version; the message."""
        self.counter += 1
        self.assigned[model] = Assigned(model, version, rollout)
        now = int(self.clock.wall())
        assignment = Assignment(DEVICE, self.counter, now, now + 10**7, tuple(self.assigned.values()))
        assignment = msgspec.structs.replace(assignment, **changes)
        payload = encode((signer or self.online).sign(ASSIGNMENT, encode(assignment)))
        if announce:
            self.say(topics.assignment(DEVICE), payload)
        return payload

    def order(self, number, version=1, task=TASK, vector=None, signer=None, announce=True, **changes):
        """Announce a round; its order and message."""
        vector = np.full(LAYOUT.size, number, dtype=np.float32) if vector is None else vector
        self.vectors[version, number] = vector
        ref = self.offer("weights", encode_weights(vector, changes.pop("layout", LAYOUT), Precision.FP32))
        order = RoundOrder(MODEL, version, VARIANT, number, ref, task, int(START) + 10**7)
        order = msgspec.structs.replace(order, **changes)
        payload = encode((signer or self.online).sign(ROUND, encode(order)))
        if announce:
            self.say(topics.round_order(order.model, order.variant), payload)
        return order, payload

    def say(self, topic, payload, retain=True):
        """Publish."""
        self.link.publish(topic, payload, retain=retain)
        self.turn()

    def turn(self):
        """Do what has been asked for."""
        for event in self.link.poll(0.0):
            if isinstance(event, Arrived) and event.payload:
                _, kind = topics.parse_up(event.topic)
                getattr(self, f"_on_{kind}")(event.payload)
        self.link.poll(0.0)

    def _on_want(self, payload):
        request = decode(payload, Want)
        self.alone += request.alone
        if self.serves and request.sha256 in self.files:
            ref, data = self.files[request.sha256]
            for index in wanted(request):
                start = index * BLOCK_SIZE
                block = Block(ref.sha256[:16], index, data[start : start + block_length(ref, index)])
                topic = topics.own_block(DEVICE) if request.alone else topics.block(ref.sha256.hex())
                self.link.publish(topic, encode(block), qos=0)

    def _on_update(self, payload):
        part = decode(payload, UpdatePart)
        parts = self._parts[part.sha256]
        parts[part.part] = part.data
        if len(parts) < part.parts:
            return
        data = b"".join(parts[i] for i in sorted(self._parts.pop(part.sha256)))
        assert hashlib.sha256(data).digest() == part.sha256
        self.updates[part.round].append((part, data))
        if self.receipts != "silent":
            stored = self.receipts == "store"
            receipt = Receipt(part.model, part.version, part.round, part.sha256, stored, "" if stored else "too late")
            self.link.publish(topics.receipt(DEVICE), encode(receipt))

    def _on_report(self, payload):
        self.reports.append(decode(payload, Report))

    def _on_state(self, payload):
        self.states.append(decode(payload, State))

    def sent(self, number):
        """The distinct updates that have arrived for a round, decoded."""
        return [
            self.read(head, data).dense() for head, data in {data: (head, data) for head, data in self.updates[number]}.values()
        ]

    def read(self, head, data):
        """An update as its device meant it: coded with the weights that it was given."""
        start = np.zeros(LAYOUT.size, dtype=np.float32)
        before = self.vectors.get((head.version, head.before), start)
        history = History(start, before, self.vectors[head.version, head.round], tuple(t.shape for t in LAYOUT.tensors))
        return decode_update(data, LAYOUT.size, history)

    def steps(self):
        """What the device has reported, progress left out."""
        return [report.step for report in self.reports]

    def errors(self):
        """The troubles that the device has reported."""
        return [report.error for report in self.reports if report.error]
