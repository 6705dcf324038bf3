"""The virtual devices as the simulation knows them: a few numbers each. Everything large that is theirs lies with the workers."""

from collections.abc import Mapping, Sequence

import numpy as np

from edgefl.aggregate.standing import after_round, fallen
from edgefl.jumpstart import is_race
from edgefl.layout import Index
from edgefl.participation import chance, lot, takes_part
from edgefl.simulate.experiment import Experiment, Speeds
from edgefl.simulate.jobs import Player
from edgefl.simulate.traffic import VERSION
from edgefl.wire.rounds import HISTORY_REACH
from edgefl.wire.tasks import keeps_history


class Fleet:
    """All devices of a simulation. An accumulator with one owner.

    Attributes:
        experiment: what is simulated.
        models: of each device, the model's name, which its lots depend on.
        loss: float64, shape `(devices,)`: of the device's last training; 0 if it has had none.
        before: int64: the round of its last training; 0 if it has had none.
        fetched: int64: the round whose weights it fetched last; 0 if it holds the version's own alone.
        counts: int64: its updates that counted.
        hostile: bool: whether it is an attacker.
        standing: float64: what the aggregator thinks of it (`edgefl.aggregate.standing`); 1 if it does not look.
        excluded: bool: whether it takes part no more, because of its standing.
        slowness: float64: factor on its training time.
    """

    def __init__(self, experiment: Experiment, models: Sequence[str]) -> None:
        """Draw the attackers and the speeds; a model's name for each device."""
        self.experiment = experiment
        self.models = models
        devices = len(models)
        self.names = tuple(f"s{experiment.seed}-{number:05}" for number in range(devices))
        self.loss = np.zeros(devices)
        self.before: Index = np.zeros(devices, dtype=np.int64)
        self.fetched: Index = np.zeros(devices, dtype=np.int64)
        self.counts: Index = np.zeros(devices, dtype=np.int64)
        self.standing = np.ones(devices)
        self.excluded = np.zeros(devices, dtype=np.bool_)
        self.hostile = np.zeros(devices, dtype=np.bool_)
        if experiment.attack:
            chosen = np.random.default_rng([experiment.seed, 2]).permutation(devices)
            self.hostile[chosen[: round(experiment.attack.fraction * devices)]] = True
        self.slowness = slowness(experiment.speeds, devices, np.random.default_rng([experiment.seed, 3]))

    def __len__(self) -> int:
        return len(self.names)

    def player(self, device: int, number: int) -> Player:
        """The device as a worker is told of it when it begins a round."""
        attack = self.experiment.attack if self.hostile[device] else None
        before = int(self.before[device])
        recent = before if keeps_history(self.experiment.plan) and 0 < number - before <= HISTORY_REACH else 0
        return Player(device, self.names[device], float(self.loss[device]), recent, attack)

    def judge(self, scores: Mapping[int, float]) -> None:
        """Take in what the aggregator thinks of a round's devices, and exclude those that the plan has had enough of."""
        known = {str(device): float(self.standing[device]) for device in scores}
        after = after_round(known, {str(device): score for device, score in scores.items()})
        for device, standing in after.items():
            self.standing[int(device)] = standing
        plan, before = self.experiment.plan, {str(device) for device in np.flatnonzero(self.excluded)}
        for device in fallen(after, before, plan.exclude, attackers=plan.attackers, devices=len(self.standing)):
            self.excluded[int(device)] = True

    def chosen(self, number: int, mean_loss: float) -> list[int]:
        """The devices that take part in a round, ascending.

        With the selection `lottery` those whose lot says so, as in a live fleet. With `exact` the lots are the same, but so many
        take part as the fraction says: those with the smallest lots in proportion to their chances. In a jump-start it is the
        quickest devices, as many as it waits for.

        Args:
            number: of the round.
            mean_loss: that the devices reported of the round before; 0 if it is not known.
        """
        plan = self.experiment.plan
        able = [device for device in range(len(self)) if not self.excluded[device]]
        if plan.jump_start and is_race(plan, number):  # the quickest are the first
            return sorted(sorted(able, key=lambda d: (self.slowness[d], d))[: plan.jump_start.devices])
        likely = {device: self._chance(device, mean_loss) for device in able}
        if self.experiment.selection == "lottery":
            return [d for d in able if takes_part(self.models[d], VERSION, number, self.names[d], likely[d])]
        count = min(len(able), max(1, round(plan.fraction * len(self))))
        ranked = sorted(able, key=lambda d: (lot(self.models[d], VERSION, number, self.names[d]) / likely[d], d))
        return sorted(ranked[:count])

    def draws(self, device: int, number: int, mean_loss: float) -> bool:
        """Whether a device's own lot lets it take part in a round."""
        if self.excluded[device]:
            return False
        chance = self._chance(device, mean_loss)
        return takes_part(self.models[device], VERSION, number, self.names[device], chance)

    def _chance(self, device: int, mean_loss: float) -> float:
        plan = self.experiment.plan
        own = float(self.loss[device]) if plan.sampling == "loss" else 0.0
        return chance(plan.fraction, own_loss=own, mean_loss=mean_loss)


def slowness(speeds: Speeds | None, devices: int, rng: np.random.Generator) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """The factor on each device's training time, float64, shape `(devices,)`, positive."""
    if speeds is None or speeds.distribution == "equal":
        return np.ones(devices)
    if speeds.distribution == "lognormal":
        return rng.lognormal(0.0, speeds.spread, devices)
    # Inverse of the distribution function: the smallest factor is 1, and the tail index is 1 / spread.
    return (1.0 - rng.random(devices)) ** -speeds.spread
