"""What is said between the simulation and its workers: msgpack, so that nothing that is loaded can run code."""

import msgspec
import numpy as np

from edgefl.errors import EdgeflError, EngineError, InputError, MachineError, PeerError
from edgefl.layout import Float32, Layout
from edgefl.recipe import Recipe
from edgefl.simulate.experiment import Attack
from edgefl.wire.rounds import Task


class Player(msgspec.Struct, frozen=True, array_like=True):
    """A device that has work.

    Attributes:
        number: which device, from 0.
        name: its id, which seeds its training.
        loss: of its last training; 0 if there was none.
        before: the last round whose weights it trained from, if it may name it; 0 otherwise.
        attack: what it does wrong.
    """

    number: int
    name: str
    loss: float = 0.0
    before: int = 0
    attack: Attack | None = None


class Job(msgspec.Struct, frozen=True, array_like=True):
    """Work for one worker: players that are played one after the other.

    Attributes:
        round: whose weights are trained from, or measured.
        task: how; None measures the weights on the players' own examples and changes nothing.
        players: one; several only if they conspire.
        crowd: how many devices take part in the round: what conspirators know.
        test: whether each player trains, is measured on the examples that it keeps for testing, and forgets what it learned.
    """

    round: int
    task: Task | None
    players: tuple[Player, ...]
    crowd: int = 1
    test: bool = False


class Played(msgspec.Struct, frozen=True, array_like=True):
    """What came of one player.

    Attributes:
        number: which device.
        samples: its examples.
        data: the encoded update; empty if there is none.
        loss_before, loss_after: of the first and the last epoch; of a measurement, both its loss.
        before: the earlier round that the update's history names; 0 for the version's own weights, or none.
        accuracy: of a measurement.
        failure: why there is no update; empty if there is one.
    """

    number: int
    samples: int
    data: bytes = b""
    loss_before: float = 0.0
    loss_after: float = 0.0
    before: int = 0
    accuracy: float | None = None
    failure: str = ""


class Troubled(msgspec.Struct, frozen=True, array_like=True):
    """An error that ends the simulation, in its parts."""

    fault: str
    problem: str
    expected: str
    found: str
    remedy: str

    @classmethod
    def of(cls, error: EdgeflError) -> "Troubled":
        """The parts of an error."""
        return cls(error.fault, error.problem, error.expected, error.found, error.remedy)

    def error(self) -> EdgeflError:
        """The error again, by its family."""
        kinds = {"input": InputError, "peer": PeerError, "machine": MachineError}
        kind = kinds.get(self.fault, EngineError)
        return kind(self.problem, expected=self.expected, found=self.found, remedy=self.remedy)


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """A worker's answer to a job: one `Played` for each player, or what went wrong."""

    played: tuple[Played, ...] = ()
    trouble: Troubled | None = None


class SceneHead(msgspec.Struct, frozen=True, array_like=True):
    """The part of a structure that is no graph."""

    layout: Layout
    input_shape: tuple[int, ...]
    classes: int
    batch: int
    recipe: Recipe
    momentum: bool


ENCODER = msgspec.msgpack.Encoder()
JOB = msgspec.msgpack.Decoder(Job)
ANSWER = msgspec.msgpack.Decoder(Answer)
HEADS = msgspec.msgpack.Decoder(tuple[SceneHead, ...])


def floats(data: bytes) -> Float32:
    """A vector as it lies in a file or a message."""
    return np.frombuffer(data, dtype="<f4").astype(np.float32, copy=False)
