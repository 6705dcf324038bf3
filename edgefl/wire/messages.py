"""The messages, as msgspec structs in msgpack arrays: small, typed, bounded, and open at the end.

Rules:

* A field is only ever appended, with a default; never retyped, reused or removed. An old decoder skips what it does not know,
  a new decoder fills in what an old sender did not say.
* Every length from the network has a bound in its type, so that nothing is allocated for a message that lies.
* What has consequences (manifests, round orders) travels inside `Signed`: the bytes that were signed, and the signature.
"""

from typing import Annotated, TypeVar

import msgspec

from edgefl.errors import MessageError
from edgefl.layout import Layout
from edgefl.plan import Rate
from edgefl.recipe import Recipe

MAX_PACKET = 128 * 1024
"""Bytes of one MQTT payload; AWS IoT Core's limit, and far below Mosquitto's."""
BLOCK_SIZE = 32 * 1024
MAX_FILE = 1 << 30
MAX_BLOCKS = MAX_FILE // BLOCK_SIZE
PART_SIZE = 96 * 1024
"""Bytes of an encoded update in one message."""
MAX_CSR = 2048
MAX_CHAIN = 6144
"""Bytes of a certificate signing request (ours has 200), and of a certificate with its intermediate (ours have 1,600)."""
HISTORY_REACH = 8
"""How many rounds before its own an update's `before` may lie; the server keeps the weights of as many."""
SERVE = "serve"
"""Role of a variant's int8 graph, which has the version's weights inside."""

Id = Annotated[str, msgspec.Meta(min_length=1, max_length=40)]
Text = Annotated[str, msgspec.Meta(max_length=500)]
Sha256 = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
BlockHash = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Number = Annotated[int, msgspec.Meta(ge=0, le=(1 << 53))]
Version = Annotated[int, msgspec.Meta(ge=1, le=(1 << 53))]


class FileRef(msgspec.Struct, frozen=True, array_like=True):
    """A file by content: its place in the variant, its length and hashes.

    `blocks` holds the first 16 bytes of each block's SHA-256, in order; all blocks but the last are `BLOCK_SIZE` long.
    """

    role: Annotated[str, msgspec.Meta(min_length=1, max_length=20)]
    sha256: Sha256
    length: Annotated[int, msgspec.Meta(ge=1, le=MAX_FILE)]
    blocks: Annotated[tuple[BlockHash, ...], msgspec.Meta(min_length=1, max_length=MAX_BLOCKS)]


class Health(msgspec.Struct, frozen=True, array_like=True):
    """When a version that a device has installed is good enough to stay; otherwise the device goes back to the one before.

    Attributes:
        drop: how much lower than before the accuracy on the device's own data may be, in [0, 1]; 1 leaves it out.
        seconds: that the trial may take; what is slower has failed.
        starts: how many times the trial may be begun (each ended by a crash or a power cut) before it has failed.
        tolerance: of the golden outputs, absolute, beside a relative one of the same size.
    """

    drop: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 1.0
    seconds: Annotated[float, msgspec.Meta(gt=0.0, le=86400.0)] = 900.0
    starts: Annotated[int, msgspec.Meta(ge=1, le=100)] = 3
    tolerance: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] = 1e-3


class Fit(msgspec.Struct, frozen=True, array_like=True):
    """What a variant took when it was run before it was announced (`edgefl.server.rehearsal`); zeros if it was not.

    Attributes:
        peak_bytes: resident memory of the trainer process at its largest: a trial, a round's training, an encoded update.
        step_ms: of the fastest training step on a full batch, on the pushing machine.
        memory_mb: MiB that the profile allows the trainer.
        threads: of the trainer.
        machine: architecture, processor and software of the pushing machine.
    """

    peak_bytes: Number = 0
    step_ms: Annotated[float, msgspec.Meta(ge=0.0)] = 0.0
    memory_mb: Number = 0
    threads: Number = 0
    machine: Text = ""


class Difference(msgspec.Struct, frozen=True, array_like=True):
    """A shorter way to a weights file for a device that holds certain older ones.

    Attributes:
        base: hash of the weights file that must be held.
        file: what turns it into the wanted weights file, to the last bit (`edgefl.codec.difference`).
    """

    base: Sha256
    file: FileRef


class Manifest(msgspec.Struct, frozen=True, array_like=True):
    """What a variant is: everything a device must know to hold and train it.

    Attributes:
        model: name of the model.
        version: counts the pushes of this model, from 1.
        profile: the profile it was made for.
        variant: names the structure, for example `w0.5-int8`; devices with equal variants share round orders.
        engine: `portable` or `ort-training`.
        layout: of the flat parameter vector.
        input_shape: of one example.
        classes: number of outputs.
        batch: rows of the training graph; a smaller batch is padded and masked.
        files: all files of the variant (roles `train`, `eval`, `infer`, `weights`, for ort-training also `optimizer`,
            `checkpoint`; `golden` holds inputs and the outputs that they must give; `serve`, if any, is
            an int8 graph for applications).
        round_key: raw public key whose signature makes round orders of this version valid.
        created, expires: seconds since 1970, server clock.
        recipe: loss and optimiser of its graphs.
        health: when it may stay on a device.
        differences: shorter ways to its `weights` from those of earlier versions.
        sources: where its files may also be had: `https://...` or `file:///...`; the file with SHA-256 H is SOURCE/H.
        fit: what it took to run it.
    """

    model: Id
    version: Version
    profile: Id
    variant: Id
    engine: Id
    layout: Layout
    input_shape: Annotated[tuple[Annotated[int, msgspec.Meta(ge=1, le=1 << 24)], ...], msgspec.Meta(max_length=6)]
    classes: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
    batch: Annotated[int, msgspec.Meta(ge=1, le=65536)]
    files: Annotated[tuple[FileRef, ...], msgspec.Meta(min_length=1, max_length=16)]
    round_key: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    created: Number
    expires: Number
    recipe: Recipe = Recipe()
    health: Health = Health()
    differences: Annotated[tuple[Difference, ...], msgspec.Meta(max_length=16)] = ()
    sources: Annotated[tuple[Text, ...], msgspec.Meta(max_length=8)] = ()
    fit: Fit = Fit()

    def file(self, role: str) -> FileRef:
        """The file with this role.

        Raises:
            MessageError: the manifest lists none.
        """
        for ref in self.files:
            if ref.role == role:
                return ref
        raise MessageError(f"manifest of {self.model}@{self.version} lists no {role!r} file")

    @property
    def offered(self) -> tuple[FileRef, ...]:
        """Everything that a device may ask the server for: the files, and the differences to the weights."""
        return (*self.files, *(difference.file for difference in self.differences))

    @property
    def total_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(ref.length for ref in self.files)


class Task(msgspec.Struct, frozen=True, array_like=True):
    """What a device does in a round: the part of the plan that concerns it, see `edgefl.plan.Plan`.

    Attributes:
        learning_rate, sparsity: of this round, after decay and warm-up.
        loss: mean training loss that the devices reported of the round before; 0 if it is not known.
        biased: whether devices with a larger loss than that take part more often.
        mutual: weight of what exits learn of each other in this round.
    """

    epochs: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    learning_rate: Annotated[float, msgspec.Meta(gt=0.0, le=100.0)]
    sparsity: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)]
    bits: Annotated[int, msgspec.Meta(ge=1, le=8)]
    fraction: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)]
    seed: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
    proximal: Annotated[float, msgspec.Meta(ge=0.0, le=1000.0)] = 0.0
    by_layer: bool = False
    sampled: bool = False
    rotated: bool = False
    context: bool = False
    price: Annotated[float, msgspec.Meta(ge=0.0, le=100.0)] = 0.0
    correction: Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)] = 0.0
    rate: Rate = "fixed"
    loss: Annotated[float, msgspec.Meta(ge=0.0)] = 0.0
    biased: bool = False
    mutual: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 1.0


class RoundOrder(msgspec.Struct, frozen=True, array_like=True):
    """The current weights of a variant and, while the round is open, the task.

    `task` is None when training has ended: devices fetch the final weights and stay idle. `differences` are shorter ways to the
    weights.
    """

    model: Id
    version: Version
    variant: Id
    round: Number
    weights: FileRef
    task: Task | None
    expires: Number
    differences: Annotated[tuple[Difference, ...], msgspec.Meta(max_length=16)] = ()


class Assigned(msgspec.Struct, frozen=True, array_like=True):
    """Which version of a model a device is to hold; `rollout` is the number of the rollout that says so, 0 for none."""

    model: Id
    version: Version
    rollout: Number = 0


class Assignment(msgspec.Struct, frozen=True, array_like=True):
    """What one device is to hold: the server's word for this device alone.

    Attributes:
        device: whom it is for.
        counter: rises with every change; a device never follows a lower one than it has followed.
        issued, expires: seconds since 1970.
        models: every model that the device is to hold; others are left as they are.
    """

    device: Id
    counter: Number
    issued: Number
    expires: Number
    models: Annotated[tuple[Assigned, ...], msgspec.Meta(max_length=64)] = ()


class Signed(msgspec.Struct, frozen=True, array_like=True):
    """Signed bytes. `purpose` is part of what was signed, so that no message can be replayed as one of another kind."""

    purpose: Annotated[str, msgspec.Meta(max_length=20)]
    payload: Annotated[bytes, msgspec.Meta(max_length=MAX_PACKET)]
    key: Annotated[str, msgspec.Meta(max_length=64)]
    signature: Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]


class Want(msgspec.Struct, frozen=True, array_like=True):
    """Wanted blocks of a file: bit i of `bitmap` (least significant bit of byte 0 first) stands for block `first + i`.

    `alone` asks for an answer on the device's own topic, at its own pace: a slow link cannot take what others have asked for.
    `heard` is the `sent` of the last block that came over this connection, 0 for none: a connection keeps the order, so what was
    sent later is still on its way, and what was sent before and is asked for is lost. Without it, `behind` says for how many
    seconds what was sent is still on its way: a slow link's time for a block, or the time for which it has listened in vain.
    `fresh` says that the device begins to listen with this request: nothing that was sent before is on its way to it.
    """

    sha256: Sha256
    first: Annotated[int, msgspec.Meta(ge=0, lt=MAX_BLOCKS)]
    bitmap: Annotated[bytes, msgspec.Meta(min_length=1, max_length=64)]
    alone: bool = False
    behind: Annotated[int, msgspec.Meta(ge=0, le=30)] = 0
    heard: Number = 0
    fresh: bool = False


class Block(msgspec.Struct, frozen=True, array_like=True):
    """One block of a file; the topic names the file.

    `sent` is when, on the server's clock, in steps of its choice, never backwards; 0 if it does not say. Devices give it back.
    """

    file: BlockHash
    index: Annotated[int, msgspec.Meta(ge=0, lt=MAX_BLOCKS)]
    data: Annotated[bytes, msgspec.Meta(min_length=1, max_length=BLOCK_SIZE)]
    sent: Number = 0


class Installed(msgspec.Struct, frozen=True, array_like=True):
    """A model as a device holds it."""

    model: Id
    version: Version
    variant: Id


class State(msgspec.Struct, frozen=True, array_like=True):
    """Birth (online) with the inventory, or death (the will) with the same session number."""

    session: Number
    online: bool
    profile: Id = "unknown"
    engine: Id = "unknown"
    software: Id = "unknown"
    models: Annotated[tuple[Installed, ...], msgspec.Meta(max_length=64)] = ()


class UpdatePart(msgspec.Struct, frozen=True, array_like=True):
    """One part of an encoded update. Parts of one update share all fields but `part` and `data`.

    Attributes:
        model, version, variant, round: which weights the delta starts from.
        samples: examples it was trained on, the weight in the mean.
        loss_before, loss_after: mean local loss of the first and the last epoch.
        sha256: of the whole encoded update.
        part, parts: place of this part.
        data: bytes of the encoded update.
        before: an earlier round whose weights the device still held and coded positions with; 0 if it used none.
    """

    model: Id
    version: Version
    variant: Id
    round: Number
    samples: Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]
    loss_before: float
    loss_after: float
    sha256: Sha256
    part: Annotated[int, msgspec.Meta(ge=0, lt=16384)]
    parts: Annotated[int, msgspec.Meta(ge=1, le=16384)]
    data: Annotated[bytes, msgspec.Meta(min_length=1, max_length=PART_SIZE)]
    before: Number = 0


class Receipt(msgspec.Struct, frozen=True, array_like=True):
    """The server's word about an update: it is stored for good (`stored`), or it never will be (`refused`)."""

    model: Id
    version: Version
    round: Number
    sha256: Sha256
    stored: bool
    reason: Text = ""


class Report(msgspec.Struct, frozen=True, array_like=True):
    """Progress of a device, or its last error.

    Attributes:
        model, version, round: what it is about.
        step: `fetching`, `deferred`, `trial`, `activated`, `reverted`, `training`, `trained`, `adopted` (the final weights),
            `failed`.
        percent: of the step.
        received: payload bytes that the device has received since it started.
        peak_rss: bytes, agent and trainer together.
        error: what went wrong, empty when nothing did.
        code: the same in one word that a program can tell apart: an error's `code`, see `edgefl.errors`.
        fetched: bytes of the version's files that are there, at step `fetching`.
    """

    model: Id
    version: Number
    round: Number
    step: Id
    percent: Annotated[int, msgspec.Meta(ge=0, le=100)] = 0
    received: Number = 0
    peak_rss: Number = 0
    error: Text = ""
    code: Annotated[str, msgspec.Meta(max_length=40)] = ""
    fetched: Number = 0


class ClaimRequest(msgspec.Struct, frozen=True, array_like=True):
    """A board without a certificate asks for its first one, on the claim broker.

    Attributes:
        device: the id that it claims.
        token: the one-time secret from its claim.
        csr: certificate signing request (PKCS 10, DER) for a key that was made on the board.
        profile: what it believes to be; the claim is bound to both.
    """

    device: Id
    token: Annotated[bytes, msgspec.Meta(min_length=16, max_length=64)]
    csr: Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_CSR)]
    profile: Id


class ClaimReply(msgspec.Struct, frozen=True, array_like=True):
    """The answer: a certificate, or a code why there is none.

    Attributes:
        certificate: the board's, followed by the intermediate, PEM; empty when refused.
        root: the TUF root metadata with which the board begins; empty if the bundle has it.
        code: empty, or what was wrong, see `edgefl.server.claims`.
        text: the same for a person.
    """

    certificate: Annotated[bytes, msgspec.Meta(max_length=MAX_CHAIN)] = b""
    root: Annotated[bytes, msgspec.Meta(max_length=MAX_PACKET)] = b""
    code: Annotated[str, msgspec.Meta(max_length=40)] = ""
    text: Text = ""


class RenewRequest(msgspec.Struct, frozen=True, array_like=True):
    """A device says which certificate its connection uses and, with a request, asks for the next one.

    Attributes:
        using: serial number, hexadecimal.
        csr: for a new key (PKCS 10, DER); empty when nothing is asked for.
    """

    using: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{1,40}\Z")]
    csr: Annotated[bytes, msgspec.Meta(max_length=MAX_CSR)] = b""


class Renewed(msgspec.Struct, frozen=True, array_like=True):
    """The answer: a certificate as in `ClaimReply`, or a code; the code `rotate` is the order to ask for one now."""

    certificate: Annotated[bytes, msgspec.Meta(max_length=MAX_CHAIN)] = b""
    code: Annotated[str, msgspec.Meta(max_length=40)] = ""
    text: Text = ""


M = TypeVar("M", bound=msgspec.Struct)
_ENCODER = msgspec.msgpack.Encoder()
_DECODERS: dict[type[msgspec.Struct], msgspec.msgpack.Decoder[msgspec.Struct]] = {}


def encode(message: msgspec.Struct) -> bytes:
    """The message's bytes.

    Raises:
        MessageError: they would not fit one packet.
    """
    data = _ENCODER.encode(message)
    if len(data) > MAX_PACKET:
        raise MessageError(
            f"{type(message).__name__} is too large for one packet", expected=f"at most {MAX_PACKET} bytes", found=f"{len(data)}"
        )
    return data


def decode(data: bytes, kind: type[M]) -> M:
    """The message in these bytes.

    Raises:
        MessageError: too long, truncated, of another shape, or out of range; the text names the field.
    """
    if len(data) > MAX_PACKET:
        raise MessageError(f"{kind.__name__} message is too large", expected=f"at most {MAX_PACKET} bytes", found=f"{len(data)}")
    decoder = _DECODERS.setdefault(kind, msgspec.msgpack.Decoder(kind))
    try:
        message = decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:  # the last: nested 100,000 deep
        raise MessageError(f"{kind.__name__} message does not decode", found=str(error)) from None
    if not isinstance(message, kind):
        raise MessageError(f"{kind.__name__} message does not decode")
    return message
