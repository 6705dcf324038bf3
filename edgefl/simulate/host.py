"""Playing devices: what a worker does. One engine for each structure, one set of examples; the devices come and go.

Model: a device is its examples, its memory of earlier rounds and its name. Playing one is what the trainer of a board does: set
the round's weights, train, take the difference, compress it with what the last round left out. What the device must keep is
handed back as bytes; where they lie until its next round is the pool's business.

Rules: a function of job, weights and memories; the same random numbers as a board of this name would draw. A training that
diverges is the device's failure, not the simulation's.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from edgefl.codec.compress import Memory, compress
from edgefl.codec.marks import factors
from edgefl.codec.scheme import Scheme
from edgefl.codec.update import needs_history
from edgefl.device.coding import carried
from edgefl.engine.contract import Trained
from edgefl.engine.curvature import curvature
from edgefl.engine.open import open_engine
from edgefl.errors import EngineError, UpdateError
from edgefl.examples import Examples
from edgefl.layout import Float32
from edgefl.rates import rate_by_curvature, rate_by_loss
from edgefl.simulate.attacks import Conspiracy, poisoned, twisted
from edgefl.simulate.histories import Histories, Weights
from edgefl.simulate.jobs import Job, Played, Player, floats
from edgefl.simulate.scene import Scene
from edgefl.wire.rounds import Task
from edgefl.wire.tasks import scheme_of

Kept = tuple[Played, bytes]
"""What came of a device, and what it keeps."""


@dataclass(frozen=True, slots=True)
class _Learned:
    """A device that has trained: what it learned, the random numbers that follow, the personal values that it keeps."""

    player: Player
    samples: int
    trained: Trained
    delta: Float32
    rng: np.random.Generator
    personal: Float32


class Host:
    """Plays the devices of one scene. Used by one thread.

    Args:
        scene: the devices.
        directory: holds the scene's graphs, as `Scene.write_graphs` writes them.

    Raises:
        EngineError: the graphs of a structure cannot be used.
    """

    def __init__(self, scene: Scene, directory: Path) -> None:
        self._scene = scene
        self._benches = [Bench(scene, kind, directory) for kind in range(len(scene.structures))]

    def play(self, job: Job, weights: Callable[[int, int], Float32], memories: Sequence[bytes]) -> list[Kept]:
        """Play a job's devices, which all train the same structure.

        Args:
            job: which devices, and what they do.
            weights: by structure, of any round that the job names.
            memories: what each player kept, as an earlier call gave it; empty before its first.

        Returns:
            For each player the outcome and what it keeps now.

        Raises:
            EngineError: the runtime failed.
        """
        kind = self._scene.kind(job.players[0].number)
        return self._benches[kind].play(job, partial(weights, kind), memories)


class Bench:
    """Plays the devices of one structure. Used by one thread."""

    def __init__(self, scene: Scene, kind: int, directory: Path) -> None:
        self._scene = scene
        self._structure = scene.structures[kind]
        self._head = self._structure.head
        self._engine = open_engine(scene.files(directory, kind), threads=1)
        self._personal = self._head.layout.personal()
        self._histories = Histories(self._head.layout)
        self._parts = self._structure.parts()

    def play(self, job: Job, weights: Weights, memories: Sequence[bytes]) -> list[Kept]:
        """See `Host.play`."""
        players = list(zip(job.players, memories, strict=True))
        task = job.task
        if task is not None and job.test:
            return [(self._test(player, job.round, task, weights, kept), kept) for player, kept in players]
        if task is None:
            return [(self._measure(player, weights(job.round), kept), kept) for player, kept in players]
        if not _conspire(job):
            return [self._round(player, job.round, task, weights, kept) for player, kept in players]
        plot = Conspiracy(self._structure.sent)
        learned = [self._learn(player, job.round, task, weights, kept) for player, kept in players]
        for one in learned:
            if isinstance(one, _Learned):
                plot.add(one.delta)
        attack = job.players[0].attack
        lie = plot.update(job.crowd, attack.strength if attack else 0.0)
        told = [replace(one, delta=lie) if isinstance(one, _Learned) else one for one in learned]
        return [self._told(one, job.round, task, weights, kept) for one, (_, kept) in zip(told, players, strict=True)]

    def _round(self, player: Player, number: int, task: Task, weights: Weights, kept: bytes) -> Kept:
        learned = self._learn(player, number, task, weights, kept)
        if isinstance(learned, _Learned) and player.attack:
            learned = replace(learned, delta=twisted(learned.delta, player.attack, _random(player, number, task.seed, 1)))
        return self._told(learned, number, task, weights, kept)

    def _learn(self, player: Player, number: int, task: Task, weights: Weights, kept: bytes) -> "_Learned | Played":
        """Train as a board does; a `Played` with the reason if that fails."""
        examples = self._examples(player)
        base = self._base(weights(number), kept)
        rng = _random(player, number, task.seed)
        try:
            left = factors(base, self._head.layout)
            rate = self._rate(player, number, task, base, examples, left)
            self._engine.set_vector(base)
            trained = self._engine.train(
                examples,
                epochs=task.epochs,
                learning_rate=rate,
                rng=rng,
                proximal=task.proximal,
                mutual=task.mutual,
                kept=left,
            )
        except EngineError as error:
            return Played(player.number, len(examples), failure=str(error))
        vector = self._engine.vector()
        layout = self._head.layout
        delta = carried(layout, vector) - carried(layout, base)
        return _Learned(player, len(examples), trained, delta, rng, vector[self._personal])

    def _rate(self, player: Player, number: int, task: Task, base: Float32, examples: Examples, left: Float32 | None) -> float:
        """The learning rate of this device in this round, as on a board (`edgefl.device.trainer`)."""
        if task.rate == "loss":
            return rate_by_loss(task.learning_rate, player.loss, task.loss)
        if task.rate == "curvature":
            rows = np.random.default_rng([task.seed, number]).permutation(len(examples))[: self._head.batch]
            recipe, batch = self._head.recipe, examples.take(rows)
            sharp = curvature(self._engine, recipe, base, batch, task.learning_rate, kept=left, mutual=task.mutual)
            return rate_by_curvature(task.learning_rate, sharp)
        return task.learning_rate

    def _told(self, learned: "_Learned | Played", number: int, task: Task, weights: Weights, kept: bytes) -> Kept:
        """Compress what was learned."""
        if isinstance(learned, Played):
            return learned, kept
        player, trained = learned.player, learned.trained
        scheme = scheme_of(task)
        history = self._histories.of(weights, player.before, number) if task.context else None
        try:
            done = compress(
                learned.delta,
                self._memory(kept, scheme),
                scheme,
                parts=self._parts,
                history=history,
                alive=self._histories.alive(weights, number),
                rng=learned.rng,
            )
        except UpdateError as error:
            return Played(player.number, learned.samples, failure=str(error)), kept
        velocity = [] if done.memory.velocity is None else [done.memory.velocity]
        before = player.before if needs_history(done.data) else 0
        played = Played(player.number, learned.samples, done.data, trained.loss_before, trained.loss_after, before)
        return played, b"".join(part.astype("<f4").tobytes() for part in (done.memory.residual, *velocity, learned.personal))

    def _measure(self, player: Player, weights: Float32, kept: bytes) -> Played:
        examples = self._examples(player)
        self._engine.set_vector(self._base(weights, kept))
        found = self._engine.evaluate(examples)
        return Played(player.number, len(examples), b"", found.loss, found.loss, accuracy=found.accuracy)

    def _test(self, player: Player, number: int, task: Task, weights: Weights, kept: bytes) -> Played:
        """Train as ever, then measure on the examples that were kept from that; nothing is sent."""
        learned = self._learn(player, number, task, weights, kept)
        if isinstance(learned, Played):
            return learned
        rows = self._scene.tested_on(player.number)
        found = self._engine.evaluate(Examples(self._scene.x[rows], self._scene.y[rows]))
        return Played(player.number, len(rows), b"", found.loss, found.loss, accuracy=found.accuracy)

    def _examples(self, player: Player) -> Examples:
        scene = self._scene
        rows = scene.trained_on(player.number)
        return Examples(scene.x[rows], poisoned(scene.y[rows], self._head.classes, player.attack))

    def _base(self, weights: Float32, kept: bytes) -> Float32:
        """A round's weights with the device's own personal values."""
        if not kept or not len(self._personal):
            return weights
        base = weights.copy()
        base[self._personal] = floats(kept)[-len(self._personal) :]
        return base

    def _memory(self, kept: bytes, scheme: Scheme) -> Memory:
        size = self._structure.sent
        if not kept:
            return Memory.empty(size, scheme)
        values = floats(kept)
        return Memory(values[:size], values[size : 2 * size] if scheme.correction else None)


def _conspire(job: Job) -> bool:
    return all(player.attack is not None and player.attack.kind == "alie" for player in job.players)


def _random(player: Player, number: int, seed: int, *more: int) -> np.random.Generator:
    """The generator that a board of this name has in this round (`edgefl.device.trainer`)."""
    return np.random.default_rng([seed, number, *hashlib.sha256(player.name.encode()).digest()[:4], *more])
