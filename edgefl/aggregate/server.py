"""The server's optimiser: what is made of the weights and a round's aggregate.

The aggregate is taken as the negative gradient of the weights (Reddi et al., Adaptive Federated Optimization, ICLR 2021,
https://arxiv.org/abs/2003.00295, algorithm 2; FedAvgM: Hsu et al. 2019, https://arxiv.org/abs/1909.06335):

    sgd        w += rate * d
    momentum   m = BETA1 * m + d;                       w += rate * m
    adam       m = BETA1 * m + (1-BETA1) * d; v = v - (1-BETA2) * (v - d^2);                     w += rate * m / (sqrt(v) + TAU)
    yogi       m as adam;                      v = v - (1-BETA2) * d^2 * sign(v - d^2);          w += rate * m / (sqrt(v) + TAU)

Rules: a coordinate that no device of the round covers does not move and its state stays; the state is a value that can be written
and read, so that a server that was killed goes on as if it had not been.
"""

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgefl.errors import StoreError
from edgefl.layout import Float32
from edgefl.plan import ServerOptimizer

BETA1 = 0.9
BETA2 = 0.99
TAU = 1e-3
"""Degree of adaptivity; the paper's best for most tasks."""
_VECTORS: dict[str, int] = {"sgd": 0, "momentum": 1, "adam": 2, "yogi": 2}
_HEADER = struct.Struct("<4s8sI")
MAGIC = b"EFS\x01"


@dataclass(frozen=True, slots=True)
class ServerState:
    """What an optimiser remembers: float32 vectors of the parent's size, none for `sgd`. Treat the arrays as read-only."""

    optimizer: ServerOptimizer
    vectors: tuple[Float32, ...]

    def encode(self) -> bytes:
        """As a file; empty for an optimiser that remembers nothing."""
        if not self.vectors:
            return b""
        body = b"".join(vector.astype("<f4").tobytes() for vector in self.vectors)
        return _HEADER.pack(MAGIC, self.optimizer.encode().ljust(8, b"\0"), len(self.vectors[0])) + body


def begin(optimizer: ServerOptimizer, size: int) -> ServerState:
    """An optimiser that has seen nothing."""
    return ServerState(optimizer, tuple(np.zeros(size, dtype=np.float32) for _ in range(_VECTORS[optimizer])))


def read_state(data: bytes, optimizer: ServerOptimizer, size: int) -> ServerState:
    """The state in a file that `encode` made.

    Raises:
        StoreError: it is damaged, or of another optimiser or model.
    """
    empty = begin(optimizer, size)
    expected = empty.encode()
    if len(data) != len(expected) or data[: _HEADER.size] != expected[: _HEADER.size]:
        raise StoreError(f"the server optimiser's state is no state of {optimizer!r} for {size} parameters")
    numbers = np.frombuffer(data[_HEADER.size :], dtype="<f4").astype(np.float32)
    return ServerState(optimizer, tuple(numbers.reshape(len(empty.vectors), size)))


def advance(
    parent: Float32, aggregate: Float32, state: ServerState, rate: float, covered: npt.NDArray[np.bool_] | None = None
) -> tuple[Float32, ServerState]:
    """The next weights and state.

    Args:
        parent: float32, shape `(size,)`.
        aggregate: of the round's updates, same shape.
        state: after the last round.
        rate: the server's learning rate.
        covered: which coordinates some device of the round covers; None for all.
    """
    step, vectors = _step(aggregate, state)
    moved: Float32 = parent + np.float32(rate) * step
    if covered is None:
        return moved, ServerState(state.optimizer, vectors)
    kept = tuple(np.where(covered, new, old) for new, old in zip(vectors, state.vectors, strict=True))
    return np.where(covered, moved, parent), ServerState(state.optimizer, kept)


def _step(d: Float32, state: ServerState) -> tuple[Float32, tuple[Float32, ...]]:
    """The step that the rate is applied to, and the new vectors."""
    if state.optimizer == "sgd":
        return d, ()
    if state.optimizer == "momentum":
        velocity: Float32 = np.float32(BETA1) * state.vectors[0] + d
        return velocity, (velocity,)
    mean = _blend(state.vectors[0], d, BETA1)
    square: Float32 = d * d
    if state.optimizer == "yogi":
        towards = (np.sign(square - state.vectors[1]) * square).astype(np.float32)
        spread: Float32 = state.vectors[1] + np.float32(1.0 - BETA2) * towards
    else:
        spread = _blend(state.vectors[1], square, BETA2)
    return (mean / (np.sqrt(spread) + np.float32(TAU))).astype(np.float32), (mean, spread)


def _blend(old: Float32, new: Float32, share: float) -> Float32:
    """`share` of the old and the rest of the new."""
    blend: Float32 = np.float32(share) * old + np.float32(1.0 - share) * new
    return blend
