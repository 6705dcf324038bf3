"""What is said in a round: the order with the current weights and the task, the updates, and what became of each.

Model: the server signs one `RoundOrder` for each variant. A device that takes part answers with an encoded update
(`edgefl.codec.update`) in `UpdatePart`s, again and again until the server's `Receipt` says that it is stored for good, or
never will be.
"""

from typing import Annotated

import msgspec

from edgefl.plan import Rate
from edgefl.wire.files import Difference, FileRef
from edgefl.wire.messages import Id, Number, Sha256, Text, Version

PART_SIZE = 96 * 1024
"""Bytes of an encoded update in one message."""
HISTORY_REACH = 8
"""How many rounds before its own an update's `before` may lie; the server keeps the weights of as many."""


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
