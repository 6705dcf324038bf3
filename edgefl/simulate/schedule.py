"""Which devices train when, and in what order their updates arrive.

Model: a schedule is asked for the arrivals of one round after the other.

* `Synchronous`: those that take part all train from the round's weights; the round lasts as long as the slowest of them. Updates
  arrive in the order of the devices' numbers, so that the result does not depend on what is faster.
* `Buffered`: a queue of events in simulated time (FedBuff, Nguyen et al., AISTATS 2022, https://arxiv.org/abs/2106.06639). A
  device trains from the weights that were the newest when it began, and its update arrives when it is done, whatever round is
  open then. Among equal times the smaller number comes first.

Rule: a device's training is computed when its result is needed, together with all others that have begun: what it gives depends
on when it began alone, and so all workers have something to do.
"""

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edgefl.simulate.downlink import Published
from edgefl.simulate.experiment import Experiment
from edgefl.simulate.fleet import Fleet
from edgefl.simulate.jobs import Job, Played, Player
from edgefl.simulate.scene import Scene
from edgefl.simulate.workers import Workers


@dataclass(frozen=True, slots=True)
class Arrival:
    """A device's outcome reaches the server.

    Attributes:
        played: the outcome.
        player: the device, as it was when it began.
        number: the round that it trained for.
        time: simulated seconds since the start.
    """

    played: Played
    player: Player
    number: int
    time: float


Orders = Mapping[int, Published]
"""What an open round is for the devices of each structure; at least one."""


class Bill(Protocol):
    """Counts what messages cost."""

    def fetch(self, held: int, published: Published) -> int:
        """Bytes that a device fetches to begin a round, which holds the weights of the round `held`; they are counted."""
        ...

    def send(self, player: Player, number: int, played: Played) -> int:
        """Bytes of an update; they are counted."""
        ...


class Schedule(Protocol):
    """The devices' side of a simulation, round by round."""

    @property
    def now(self) -> float:
        """Simulated seconds since the start."""
        ...

    def arrivals(self, orders: Orders, mean_loss: float) -> Iterator[Arrival]:
        """What arrives while a round is open. The caller stops when the round closes."""
        ...

    def needed(self) -> int:
        """The oldest round that some device still trains from."""
        ...


@dataclass(frozen=True, slots=True)
class Parts:
    """What every schedule needs."""

    experiment: Experiment
    fleet: Fleet
    scene: Scene
    workers: Workers
    bill: Bill

    def training_seconds(self, device: int, published: Published) -> float:
        """How long a device trains for a round."""
        speeds = self.experiment.speeds
        if speeds is None:
            return 0.0
        examples = self.scene.samples(device) * published.task.epochs
        return float(self.fleet.slowness[device]) * speeds.seconds_per_example * examples

    def published(self, device: int, orders: Orders) -> Published:
        """What an open round is for a device."""
        return orders[self.scene.kind(device)]

    def fetching_seconds(self, device: int, published: Published) -> float:
        """How long a device takes to fetch what a round needs; the bytes are counted."""
        count = self.bill.fetch(int(self.fleet.fetched[device]), published)
        self.fleet.fetched[device] = published.number
        rate = self.experiment.speeds.downlink if self.experiment.speeds else 0.0
        return count / rate if rate else 0.0

    def sending_seconds(self, count: int) -> float:
        """How long a device takes to send so many bytes."""
        rate = self.experiment.speeds.uplink if self.experiment.speeds else 0.0
        return count / rate if rate else 0.0


class Synchronous:
    """All that take part, then the next round."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._oldest = 1
        self.now = 0.0

    def arrivals(self, orders: Orders, mean_loss: float) -> Iterator[Arrival]:
        """See `Schedule.arrivals`."""
        parts, began, number = self._parts, self.now, number_of(orders)
        players = [parts.fleet.player(d, number) for d in parts.fleet.chosen(number, mean_loss)]
        self._oldest = number
        jobs = jobs_of(players, lambda device: parts.published(device, orders))
        ready = {p.number: began + parts.fetching_seconds(p.number, parts.published(p.number, orders)) for p in players}
        known = {player.number: player for player in players}
        for played in in_order(players, jobs, parts.workers):
            player = known[played.number]
            sent = parts.bill.send(player, number, played)
            trained = parts.training_seconds(played.number, parts.published(played.number, orders))
            at = ready[played.number] + trained + parts.sending_seconds(sent)
            self.now = max(self.now, at)
            yield Arrival(played, player, number, at)

    def needed(self) -> int:
        """See `Schedule.needed`."""
        return self._oldest


def number_of(orders: Orders) -> int:
    """The number of the open round."""
    return next(iter(orders.values())).number


def jobs_of(players: Sequence[Player], published: Callable[[int], Published]) -> list[Job]:
    """One job for each player, and one for all that conspire, who all train the same structure."""

    def job(of: tuple[Player, ...]) -> Job:
        order = published(of[0].number)
        return Job(order.number, order.task, of, len(players))

    plotters = tuple(p for p in players if p.attack and p.attack.kind == "alie")
    single = [job((p,)) for p in players if p not in plotters]
    return [*([job(plotters)] if plotters else []), *single]


def in_order(players: Sequence[Player], jobs: Sequence[Job], workers: Workers) -> Iterator[Played]:
    """The outcomes of the jobs in the order of the players; only those of conspirators wait in memory for their turn."""
    early: dict[int, Played] = {}
    outcomes = (played for answer in workers.run(jobs) for played in answer)
    for player in players:
        while player.number not in early:
            played = next(outcomes)
            early[played.number] = played
        yield early.pop(player.number)


@dataclass(frozen=True, slots=True)
class _Begun:
    """A device that is training."""

    player: Player
    published: Published
    trained: float


class Buffered:
    """Devices train at their own pace."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._rng = np.random.default_rng([parts.experiment.seed, 4])
        self._begun: dict[int, _Begun] = {}
        self._done: dict[int, Played] = {}
        self._looked = np.zeros(len(parts.fleet), dtype=np.int64)
        self._events: list[tuple[float, int, bool]] = []  # when, which device, whether its update arrives (or is trained)
        self.now = 0.0

    def arrivals(self, orders: Orders, mean_loss: float) -> Iterator[Arrival]:
        """See `Schedule.arrivals`. Ends when no device trains and none begins."""
        while True:
            self._begin(orders, mean_loss)
            if not self._events:
                return
            self.now, device, arrives = heapq.heappop(self._events)
            begun = self._begun[device]
            played = self._result(device)
            if not arrives:
                sent = self._parts.bill.send(begun.player, begun.published.number, played)
                heapq.heappush(self._events, (self.now + self._parts.sending_seconds(sent), device, True))
                continue
            del self._begun[device], self._done[device]
            yield Arrival(played, begun.player, begun.published.number, self.now)

    def _begin(self, orders: Orders, mean_loss: float) -> None:
        """Let idle devices look at the order of the open round."""
        parts = self._parts
        for device in self._candidates(number_of(orders), mean_loss):
            published = parts.published(device, orders)
            fetched = parts.fetching_seconds(device, published)
            at = self.now + fetched + parts.training_seconds(device, published)
            self._begun[device] = _Begun(parts.fleet.player(device, published.number), published, at)
            heapq.heappush(self._events, (at, device, False))

    def _candidates(self, number: int, mean_loss: float) -> list[int]:
        parts = self._parts
        if not parts.experiment.active:
            new = [d for d in range(len(parts.fleet)) if d not in self._begun and self._looked[d] < number]
            self._looked[new] = number
            return [device for device in new if parts.fleet.draws(device, number, mean_loss)]
        # A device's next update of the same round would be a repetition: it waits for the next round.
        free = [d for d in range(len(parts.fleet)) if d not in self._begun and parts.fleet.before[d] < number]
        idle = [device for device in free if not parts.fleet.excluded[device]]
        missing = min(len(idle), parts.experiment.active - len(self._begun))
        return sorted(self._rng.permutation(idle)[:missing].tolist()) if missing > 0 else []

    def _result(self, device: int) -> Played:
        """What came of a device; all that have begun are computed with it."""
        if device not in self._done:
            waiting = [self._begun[number] for number in sorted(self._begun) if number not in self._done]
            jobs = [Job(begun.published.number, begun.published.task, (begun.player,), 1) for begun in waiting]
            for answer in self._parts.workers.run(jobs):
                for played in answer:
                    self._done[played.number] = played
        return self._done[device]

    def needed(self) -> int:
        """See `Schedule.needed`."""
        return min((begun.published.number for begun in self._begun.values()), default=1 << 53)
