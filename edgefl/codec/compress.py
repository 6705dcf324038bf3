"""The device's side of the update codec: a delta goes in, a file and what is left to send come out.

Model, in the order of the stages:

1. Momentum correction: velocity = correction * velocity + delta, and the velocity instead of the delta is added to the residual
   (DGC: Lin et al., Deep Gradient Compression, ICLR 2018, https://arxiv.org/abs/1712.01887, section 3.1).
2. Selection: the largest coordinates of vector = residual + velocity (`edgefl.codec.selection`).
3. Quantisation of what is selected (`edgefl.codec.values`).
4. Entropy coding (`edgefl.codec.update`), plainly or in the context of the history.
5. What was not sent stays in the memory: residual = vector - sent. The velocity of what was sent is forgotten (momentum factor
   masking, section 3.2 there), so that old momentum does not push a coordinate on that has just been brought up to date.

Rules: a function of its arguments; `sent + residual = vector` to float32 rounding; what `decode` reads is `sent` to the last bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from edgefl.codec.contextual import write_contextual
from edgefl.codec.fitting import fit
from edgefl.codec.history import History
from edgefl.codec.pieces import pieces
from edgefl.codec.plain import write_plain
from edgefl.codec.pricing import select_priced
from edgefl.codec.rotated import write_rotated
from edgefl.codec.scheme import Scheme
from edgefl.codec.selection import select
from edgefl.codec.sparsify import Sparse
from edgefl.codec.update import check_vector, decode
from edgefl.codec.values import Quantised, dequantise, quantise
from edgefl.errors import UpdateError
from edgefl.layout import Float32, Index


@dataclass(frozen=True, slots=True)
class Memory:
    """What a device keeps from one update to the next. Treat the arrays as read-only.

    Attributes:
        residual: float32, shape `(n,)`: what was left out so far.
        velocity: float32, shape `(n,)`: momentum of the deltas; None without momentum correction.
    """

    residual: Float32
    velocity: Float32 | None

    @classmethod
    def empty(cls, size: int, scheme: Scheme) -> Self:
        """The memory of a device that has sent nothing yet."""
        zeros = np.zeros(size, dtype=np.float32)
        return cls(zeros, zeros.copy() if scheme.correction else None)


@dataclass(frozen=True, slots=True)
class Compressed:
    """A compressed update.

    Attributes:
        data: the file.
        sent: what `decode` will read from it.
        memory: what the device must keep for its next update.
    """

    data: bytes
    sent: Sparse
    memory: Memory


def compress(
    delta: Float32,
    memory: Memory,
    scheme: Scheme,
    *,
    parts: Sequence[slice] = (),
    history: History | None = None,
    alive: Index | None = None,
    rng: np.random.Generator,
) -> Compressed:
    """Make an update of what a device has learned.

    Args:
        delta: trained minus base weights, float32, shape `(n,)`, finite; not changed.
        memory: of the update before. A velocity that the scheme does not use is dropped, a missing one starts at zero.
        scheme: what is chosen and how it is written.
        parts: places of the tensors, ascending, that cover the vector; needed for `scheme.by_layer`.
        history: what both ends know of the coordinates that the file is about; None codes plainly.
        alive: int64, ascending: the only coordinates that the file is about, at least one; what the memory has of others is
            dropped. None: all.
        rng: decides stochastic rounding, sampling and the rotation's seed.

    Raises:
        UpdateError: delta or memory are not finite vectors of one length, or parts or history do not fit.
    """
    check_vector(delta)
    if memory.residual.shape != delta.shape or (memory.velocity is not None and memory.velocity.shape != delta.shape):
        raise UpdateError("the memory belongs to another model", expected=str(delta.shape), found=str(memory.residual.shape))
    if alive is not None:
        return _of_some(delta, memory, scheme, parts, history, alive, rng)
    if history is not None and history.size != len(delta):
        raise UpdateError("the history belongs to another model", expected=str(len(delta)), found=str(history.size))
    if history is not None:
        _ = history.levels  # takes more than it keeps: before there is more here
    velocity = _velocity(delta, memory, scheme.correction)
    vector = memory.residual + velocity
    check_vector(vector)
    data, sent = _rotated(vector, scheme, rng) if scheme.rotated else _sparse(vector, scheme, parts, history, rng)
    for piece in pieces(len(sent.positions)):
        vector[sent.positions[piece]] -= sent.values[piece]
    if scheme.correction:
        velocity[sent.positions] = 0.0
    return Compressed(data, sent, Memory(vector, velocity if scheme.correction else None))


def _of_some(
    delta: Float32,
    memory: Memory,
    scheme: Scheme,
    parts: Sequence[slice],
    history: History | None,
    alive: Index,
    rng: np.random.Generator,
) -> Compressed:
    """An update of a vector without what is gone."""
    velocity = None if memory.velocity is None else memory.velocity[alive]
    ends = [np.searchsorted(alive, (part.start, part.stop)).tolist() for part in parts]
    left = [slice(start, stop) for start, stop in ends if start < stop]
    small = Memory(memory.residual[alive], velocity)
    done = compress(delta[alive], small, scheme, parts=left, history=history, rng=rng)

    def spread(values: Float32) -> Float32:
        whole = np.zeros(len(delta), dtype=np.float32)
        whole[alive] = values
        return whole

    kept = done.memory
    whole = Memory(spread(kept.residual), None if kept.velocity is None else spread(kept.velocity))
    return Compressed(done.data, done.sent.within(alive, len(delta)), whole)


def _rotated(vector: Float32, scheme: Scheme, rng: np.random.Generator) -> tuple[bytes, Sparse]:
    data = write_rotated(vector, scheme.bits, rng)
    return data, decode(data, len(vector))


def _sparse(
    vector: Float32, scheme: Scheme, parts: Sequence[slice], history: History | None, rng: np.random.Generator
) -> tuple[bytes, Sparse]:
    positions = select(vector, scheme, parts, rng)
    if scheme.price and history is not None:
        positions = select_priced(vector, positions, scheme.price, scheme.bits, history, rng)
    quantised = quantise(vector[positions], scheme.bits, rng)
    data = _shortest(positions, quantised, history, len(vector), rng)
    values = dequantise(quantised.codes, quantised.low, quantised.high, scheme.bits)
    return data, Sparse(positions, values, len(vector))


def _velocity(delta: Float32, memory: Memory, correction: float) -> Float32:
    """The momentum-corrected delta; a new array if there is a correction."""
    if not correction or memory.velocity is None:
        return delta.copy() if correction else delta
    velocity = np.float32(correction) * memory.velocity
    velocity += delta
    return velocity


def _shortest(positions: Index, quantised: Quantised, history: History | None, size: int, rng: np.random.Generator) -> bytes:
    """The shorter of the plain form and the form in context."""
    plain = write_plain(positions, quantised, size)
    if history is None:
        return plain
    return min(plain, write_contextual(positions, quantised, history, fit(history, positions, rng)), key=len)
