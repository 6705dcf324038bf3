"""A toy board for the device's tests: one agent, a scripted server on a broker in memory, and a clock on a string.

No test in here. A test module imports it by its name (`pythonpath` in pyproject.toml).
"""

import hashlib
import random
import time
from collections import defaultdict

import msgspec
import numpy as np

from edgefl.codec.history import History
from edgefl.codec.update import decode as decode_update
from edgefl.codec.weights import Precision, encode_weights
from edgefl.device.agent import Agent
from edgefl.device.config import Bundle, DeviceConfig
from edgefl.device.job import TrialJob
from edgefl.device.trainer import Trainer, answer
from edgefl.device.voice import death
from edgefl.engine.contract import Evaluation, Trained
from edgefl.identity.repository import found, with_targets
from edgefl.identity.signing import ASSIGNMENT, ROUND, Signer
from edgefl.layout import Layout, Tensor
from edgefl.link.contract import Arrived
from edgefl.link.memory import MemoryLink
from edgefl.link.memory_broker import MemoryBroker
from edgefl.names import SERVER
from edgefl.store.outbox import read_residual
from edgefl.wire import topics
from edgefl.wire.blocks import block_length, file_ref, wanted
from edgefl.wire.files import BLOCK_SIZE, Block, Want
from edgefl.wire.messages import decode, encode
from edgefl.wire.presence import Report, State
from edgefl.wire.releases import Assigned, Assignment, Manifest
from edgefl.wire.rounds import Receipt, RoundOrder, Task, UpdatePart

DEVICE, PROFILE, MODEL, VARIANT = "cam-01", "toy-profile", "toy", "w1-fp32"
LAYOUT = Layout((Tensor("w", (40, 10)),))
TASK = Task(epochs=1, learning_rate=0.1, sparsity=0.05, bits=3, fraction=1.0, seed=0, context=True)
START = 1_700_000_000.0


class Killed(BaseException):
    """The process is dead: nothing catches this, nothing is tidied up."""


class Clock:
    """Time that passes when a test says so."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        """Seconds since the test began."""
        return self.now

    def wall(self):
        """Seconds since 1970."""
        return START + self.now


class Today(Clock):
    """The same, from today on: for what looks at certificates and lifetimes."""

    def __init__(self):
        """It is today."""
        super().__init__()
        self.begin = time.time()

    def wall(self):
        """Seconds since 1970."""
        return self.begin + self.now


def real_board(directory, root, broker, times, x, y, **config):
    """An agent of a fleet's real server, with these examples; `times` are its clocks, `config` the rest of its description."""
    (directory / "state").mkdir(parents=True)
    (directory / "root.json").write_bytes(root)
    np.savez(directory / "data.npz", x=x, y=y)
    described = DeviceConfig(
        engine="portable", threads=1, memory_mb=512, host="localhost", port=1,
        fleet=hashlib.sha256(root).hexdigest(), data=f"npz:{directory / 'data.npz'}", **config,
    )  # fmt: skip
    name = described.id
    return Agent(Bundle(directory, described), MemoryLink(broker, name, will=death(name, 1)), 1, rng=random.Random(1), **times)


def delta_of(number):
    """What the board learns in a round: always the same."""
    return np.random.default_rng(number).normal(size=LAYOUT.size).astype(np.float32)


class ScriptedEngine:
    """An engine whose training adds the round's delta; the round stands in the weights."""

    layout = LAYOUT

    def __init__(self, *_, **__):
        self._vector = np.zeros(LAYOUT.size, dtype=np.float32)

    def set_vector(self, vector):
        """Keep it."""
        self._vector = vector.copy()

    def vector(self):
        """Give it back."""
        return self._vector

    def train(self, *_, **__):
        """Move by the round's delta, computed so that the difference is exact enough."""
        self._vector = self._vector + delta_of(round(float(self._vector[0])))
        return Trained(1, 1.0, 0.5)

    def predict(self, x):
        """Its first weight, whatever is asked."""
        return np.full((len(x), 3), self._vector[0], dtype=np.float32)

    def evaluate(self, examples):
        """Half of the answers are right."""
        return Evaluation(0.5, 0.5, len(examples))


class InlineTrainer:
    """Takes the place of the trainer process: the real `Trainer` in this one, run when the agent looks for an answer."""

    peak_rss = 0
    wake = ()
    patience = 0
    """How many looks a job takes."""

    def __init__(self, *_, **__):
        self._job = None
        self._looks = 0
        self.started = []
        self.cancelled = 0

    @property
    def busy(self):
        """Whether a job is running."""
        return self._job is not None

    def start(self, job):
        """Take a job."""
        assert self._job is None
        self._job, self._looks = job, self.patience
        if not isinstance(job, TrialJob):
            self.started.append(job.round)

    def poll(self):
        """Run it."""
        if self._job is None:
            return None
        self._looks -= 1
        if self._looks >= 0:
            return None
        job, self._job = self._job, None
        return self.run(job)

    def run(self, job):
        """What the job comes to."""
        return answer(Trainer(1), job)

    def cancel(self):
        """Forget it."""
        self.cancelled += self._job is not None
        self._job = None


class Office:
    """A scripted server.

    Attributes:
        receipts: `store` them, `refuse` them, or stay `silent`.
        serves: whether it answers requests for blocks.
        alone: requests to be served alone.
        updates: heads and bytes of whole updates as they arrived, by round.
        reports, states: what the device has said.
    """

    def __init__(self, broker, clock):
        """Connect."""
        self.broker, self.clock = broker, clock
        self.link = MemoryLink(broker, SERVER, clean_session=False)
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


class Board:
    """A board with a state directory; its agent can be lost and started again.

    Attributes:
        agent, link: of the present start.
        config: may be replaced before a start.
    """

    def __init__(self, root, seed=0):
        """A board, its world and its data."""
        root.mkdir(parents=True, exist_ok=True)
        self.root, self.clock = root, Clock()
        self.broker = MemoryBroker(random.Random(seed))
        self.office = Office(self.broker, self.clock)
        rng = np.random.default_rng(0)
        (root / "root.json").write_bytes(self.office.documents["1.root"])
        np.savez(root / "data.npz", x=rng.normal(size=(8, 5)).astype(np.float32), y=rng.integers(0, 3, 8))
        self.config = DeviceConfig(
            id=DEVICE, profile=PROFILE, engine="portable", threads=1, memory_mb=512, storage_kib=1024, host="localhost", port=1,
            fleet=self.office.fleet, data=f"npz:{root / 'data.npz'}",
        )  # fmt: skip
        self.starts = 0
        self.agent = self.link = None

    @property
    def state(self):
        """The state directory."""
        return self.root / "state"

    @property
    def folder(self):
        """Where the model's state is."""
        return self.state / "models" / MODEL

    @property
    def model(self):
        """The model as the agent holds it."""
        return self.agent._models[MODEL]

    @property
    def session(self):
        """What the model's machine knows."""
        return self.model.session

    def belong(self, now=START):
        """Become a device of a fleet that is founded now."""
        self.office.found(now)
        self.config = msgspec.structs.replace(self.config, fleet=self.office.fleet)
        (self.root / "root.json").write_bytes(self.office.documents["1.root"])

    def start(self):
        """Begin anew with what is on disk."""
        self.starts += 1
        self.state.mkdir(exist_ok=True)  # or a link to a directory elsewhere
        self.link = MemoryLink(self.broker, DEVICE, will=death(DEVICE, self.starts))
        bundle = Bundle(self.root, self.config)
        self.agent = Agent(
            bundle, self.link, self.starts, clock=self.clock.monotonic, wall=self.clock.wall, rng=random.Random(self.starts)
        )
        self.agent._begin()
        return self

    def run(self, until, turns=600, seconds=0.05):
        """Let agent and server work, `seconds` a turn, until something has happened."""
        for _ in range(turns):
            self.turn(seconds)
            if until():
                return self
        raise AssertionError(f"it did not happen: {self.office.steps()[-5:]} {self.office.errors()[-3:]}")

    def turn(self, seconds=0.05):
        """One turn of everybody."""
        self.agent._turn()
        self.office.turn()
        self.clock.now += seconds

    def turns(self, count, seconds=0.05):
        """Let some turns pass."""
        for _ in range(count):
            self.turn(seconds)
        return self

    def lose(self):
        """Sudden death; the system takes back what the process had open."""
        self.agent._hands.close()
        self.link.drop()
        self.agent = self.link = None

    def residual(self):
        """What is kept for the next round."""
        kept = read_residual(self.folder / "settled")
        return np.zeros(LAYOUT.size) if kept is None else np.frombuffer(kept[1], "<f4").astype(float)

    def active(self):
        """Number of the active version, 0 for none."""
        model = self.agent._models.get(MODEL)
        return model.session.active.version if model and model.session.active else 0
