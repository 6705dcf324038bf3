"""What the devices of a round fetch: the weights' file, or a shorter difference from one that they hold.

Model: as `edgefl.server.downlink`, whose bounds are used here, without its blob store. The server keeps what devices *hold*
beside the true parent; with `plan.downlink_sparsity` below 1 the held weights follow the parent in few coordinates a round, and
what is missing is the server's own residual. A device holds the file that it fetched last, and the version's own.

Rule: what is trained from and what is evaluated is what devices decode, never the parent.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from edgefl.codec.advance import advance
from edgefl.codec.difference import apply_difference, encode_difference
from edgefl.codec.marks import Flags
from edgefl.codec.weights import decode_weights, encode_weights
from edgefl.errors import MachineError
from edgefl.layout import Float32, Layout
from edgefl.server.downlink import LONGEST_LIST, REACH, WORTH
from edgefl.simulate.experiment import Experiment
from edgefl.wire.blocks import file_ref
from edgefl.wire.files import Difference, FileRef
from edgefl.wire.rounds import Task

_ENTRY = 120
"""Bytes of an entry of an order's list of differences, without its block hashes."""


@dataclass(frozen=True, slots=True)
class Published:
    """What devices of a round get.

    Attributes:
        number: of the round.
        weights: as devices decode them, float32, in the layout's order.
        file: the weights' file.
        task: what to do.
        differences: by the round whose file they start from; 0 is the version's own.
        kind: the structure whose devices get it.
    """

    number: int
    weights: Float32
    file: FileRef
    task: Task
    differences: Mapping[int, Difference]
    kind: int = 0

    def fetched(self, held: int) -> FileRef:
        """The file that a device fetches which holds that of round `held`, and the version's own."""
        ways = [self.differences[number].file for number in (held, 0) if number in self.differences]
        return min([*ways, self.file], key=lambda ref: ref.length)


class Step(NamedTuple):
    """What devices would hold of the next weights: the vector, its file, and the vector as they decode it."""

    held: Float32
    file: bytes
    weights: Float32


class Downlink:
    """The weights on their way to the devices of one structure. An accumulator with one owner.

    Attributes:
        weights: the newest as devices decode them, float32.
    """

    def __init__(self, experiment: Experiment, layout: Layout, parent: Float32, kind: int = 0) -> None:
        """Begin with the version's weights. Raises ModelError when they cannot be written."""
        self._kind = kind
        self._sparsity = experiment.plan.downlink_sparsity
        self._precision = experiment.precision
        self._layout = layout
        self._held = parent
        self._file = encode_weights(parent, layout, self._precision)
        self._files: OrderedDict[int, bytes] = OrderedDict({0: self._file})
        self.weights = decode_weights(self._file, layout)

    @property
    def file_length(self) -> int:
        """Bytes of the newest weights' file."""
        return len(self._file)

    def next(self, parent: Float32, removed: Flags | None = None) -> Step:
        """What the weights after a round come to; nothing changes.

        Args:
            parent: the structure's part of it.
            removed: which of its coordinates are gone from the parent; None if none is.

        Raises:
            ModelError: they cannot be written.
        """
        held = parent if self._sparsity >= 1.0 else advance(self._held, parent, self._sparsity, removed)
        file = encode_weights(held, self._layout, self._precision)
        return Step(held, file, decode_weights(file, self._layout))

    def take(self, step: Step) -> None:
        """Go on from there."""
        self._held, self._file, self.weights = step

    def publish(self, number: int, task: Task) -> Published:
        """Open a round with the newest weights."""
        file = file_ref("weights", self._file)
        differences = self._differences() if self._sparsity < 1.0 else {}
        self._files[number] = self._file
        while len(self._files) > REACH + 1:  # the version's own stays
            del self._files[next(known for known in self._files if known)]
        return Published(number, self.weights, file, task, differences, self._kind)

    def _differences(self) -> dict[int, Difference]:
        """Those from the files of recent rounds, the newest first, then from the version's own, as far as they are worth it."""
        found: dict[int, Difference] = {}
        room, worth = LONGEST_LIST, True
        for number in [*sorted(filter(None, self._files), reverse=True), 0]:
            base = self._files[number]
            if base == self._file or not (worth or number == 0):
                continue
            data = encode_difference(base, self._file, self._layout)
            worth = data is not None and WORTH * len(data) <= len(self._file)
            if data is None or not worth:
                continue
            if apply_difference(base, data, self._layout) != self._file:
                raise MachineError("a difference does not give the weights that it was made for")
            ref = file_ref("difference", data)
            room -= _ENTRY + 16 * len(ref.blocks)
            if room >= 0:
                found[number] = Difference(file_ref("weights", base).sha256, ref)
        return found
