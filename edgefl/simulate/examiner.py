"""What the simulated server computes with models itself: evaluation, the ensemble of the families, their lessons.

Model: there is an engine for each structure in this process; members of the ensemble are the families' widest structures. Weights
are those that devices decode. The ensemble is weighed anew whenever it is asked, on the labelled examples that the server keeps;
both these and the unlabelled ones are what families are taught on, by what the ensemble believes and not by their labels.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edgefl.aggregate.ensemble import Float64, accuracy, fitted, log_loss, pooled, uniform
from edgefl.codec.marks import factors
from edgefl.engine.contract import Engine
from edgefl.engine.open import open_engine
from edgefl.errors import ConfigError
from edgefl.examples import Examples
from edgefl.layout import Float32
from edgefl.rates import learning_rate_at
from edgefl.server.teaching import Pupil, beliefs, taught
from edgefl.simulate.experiment import Experiment
from edgefl.simulate.result import Quality
from edgefl.simulate.server import Server
from edgefl.simulate.setting import Family, Setting


class Examiner:
    """Used by one thread.

    Args:
        experiment: what is simulated.
        setting: scene, families and the server's examples.
        directory: for the graphs; exists.
    """

    def __init__(self, experiment: Experiment, setting: Setting, directory: Path) -> None:
        self._experiment = experiment
        self._setting = setting
        setting.scene.write_graphs(directory)
        kinds = range(len(setting.scene.structures))
        self._engines = [open_engine(setting.scene.files(directory, kind), threads=1) for kind in kinds]

    def engine(self, kind: int) -> Engine:
        """That of a structure."""
        return self._engines[kind]

    def structures(self, servers: Sequence[Server]) -> tuple[Quality, ...]:
        """How good each structure is, in the experiment's order."""
        found: dict[int, Quality] = {}
        for family, server in zip(self._setting.families, servers, strict=True):
            for kind in family.views:
                self._engines[kind].set_vector(server.weights(kind))
                outcome = self._engines[kind].evaluate(self._setting.holdout)
                group = self._experiment.structures[kind]
                exits = f", {group.exits} exits" if group.exits else ""
                found[kind] = _quality(f"{group.model} {group.width:g}{exits}", outcome.accuracy, outcome.loss)
        return tuple(found[kind] for kind in sorted(found))

    def ensembles(self, servers: Sequence[Server]) -> tuple[Quality, ...]:
        """How good the families are together: alike, and weighed on the labelled examples if there are any."""
        holdout = self._setting.holdout
        told = self._told(servers, holdout)
        ways = {"uniform": uniform(len(told), told.shape[2]), "weighted": self._weights(servers)}
        judged = {name: pooled(told, weights) for name, weights in ways.items() if weights is not None}
        return tuple(_quality(name, accuracy(q, holdout.y), log_loss(q, holdout.y)) for name, q in judged.items())

    def teach(self, servers: Sequence[Server], number: int) -> None:
        """Let every family learn what the ensemble believes; the next round begins with that. Raises EngineError."""
        wanted = self._experiment.ensemble
        if wanted is None:
            return
        x, told = self._lesson(servers)
        weights = self._weights(servers)
        soft = pooled(told, uniform(len(told), told.shape[2]) if weights is None else weights)
        counts = np.bincount(self._setting.scene.kinds, minlength=len(self._engines))
        for place, (family, server) in enumerate(zip(self._setting.families, servers, strict=True)):
            pupils = [Pupil(self._engines[kind], index, max(1.0, counts[kind])) for kind, index in family.views.items()]
            seed = (self._experiment.seed, 7, number, place)
            rate = wanted.learning_rate
            parent = taught(server.parent, family.layout, pupils, x, soft, epochs=wanted.epochs, learning_rate=rate, seed=seed)
            server.follow(parent)

    def learned(self, family: Family, server: Server, number: int) -> Float32:
        """What the server learns in a round from its root examples, where its weights are left, as a device would."""
        plan, examples = self._experiment.plan, self._setting.root
        if examples is None:
            raise ConfigError("the server has no examples of its own")
        engine, weights = self._engines[family.widest], server.weights(family.widest)
        rng = np.random.default_rng([self._experiment.seed, 5, number])
        engine.set_vector(weights)
        left = factors(weights, engine.layout)
        engine.train(examples, epochs=plan.epochs, learning_rate=learning_rate_at(plan, number), rng=rng, kept=left)
        change: Float32 = engine.vector() - weights
        return change

    def _lesson(self, servers: Sequence[Server]) -> tuple[Float32, Float64]:
        kept = [examples for examples in (self._setting.labelled, self._setting.unlabelled) if examples is not None]
        return np.concatenate([examples.x for examples in kept]), np.concatenate(
            [self._told(servers, examples) for examples in kept], axis=1
        )

    def _weights(self, servers: Sequence[Server]) -> Float64 | None:
        """None without labelled examples."""
        labelled = self._setting.labelled
        return None if labelled is None else fitted(self._told(servers, labelled), labelled.y)

    def _told(self, servers: Sequence[Server], examples: Examples) -> Float64:
        """What each family believes of examples, shape `(families, n, classes)`."""
        shapes: Mapping[int, tuple[int, ...]] = dict(enumerate(s.head.input_shape for s in self._setting.scene.structures))
        members = [(family.widest, server) for family, server in zip(self._setting.families, servers, strict=True)]
        return np.stack(
            [
                beliefs(self._engines[kind], server.weights(kind), examples.x.reshape(-1, *shapes[kind]))
                for kind, server in members
            ]
        )


def _quality(name: str, right: float | None, loss: float) -> Quality:
    return Quality(name=name, accuracy=right, loss=loss if np.isfinite(loss) else None)
