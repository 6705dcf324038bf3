"""Counting what a training costs: payload bytes up and down, by model, written to the round they belong to.

Model: every message belongs to a model (an update, a round order, a block of one of its files). While the model is in training,
its bytes go to the open round; otherwise they go to the fleet's counters, so that nothing is left out. Bytes are counted at the
MQTT payload, our headers included: up as the server receives them, down as it publishes them (a multicast block once). The book
also counts what went wrong, by name.

Rule: the book is written down before a round closes; what a killed server had not written (at most half a second's worth) is not
counted.
"""

import sqlite3
from collections import Counter
from collections.abc import Mapping

from edgefl.store.tally import add_counter, add_traffic

UP_OUTSIDE = "uplink bytes outside of trainings"
DOWN_OUTSIDE = "downlink bytes outside of trainings"


class TrafficBook:
    """Bytes and incidents not yet written down. Owned by one thread."""

    def __init__(self) -> None:
        self._up: Counter[str] = Counter()
        self._down: Counter[str] = Counter()
        self._incidents: Counter[str] = Counter()

    def up(self, model: str, count: int) -> None:
        """Bytes from devices that concern a model; an empty name for what concerns none."""
        self._up[model] += count

    def down(self, model: str, count: int) -> None:
        """Bytes to devices that concern a model."""
        self._down[model] += count

    def incident(self, name: str) -> None:
        """Something worth counting has happened once more."""
        self._incidents[name] += 1

    def write(self, database: sqlite3.Connection, open_rounds: Mapping[str, tuple[int, int]]) -> None:
        """Write everything down, in the transaction that is open; `clear` once that has been committed.

        Args:
            database: the fleet's.
            open_rounds: id of the training and number of the open round, by model in training.
        """
        outside = Counter(self._incidents)
        for model in self._up.keys() | self._down.keys():
            if model in open_rounds:
                add_traffic(database, *open_rounds[model], self._up[model], self._down[model])
            else:
                outside[UP_OUTSIDE] += self._up[model]
                outside[DOWN_OUTSIDE] += self._down[model]
        for name, amount in outside.items():
            if amount:
                add_counter(database, name, amount)

    def clear(self) -> None:
        """Everything is written down."""
        for counted in (self._up, self._down, self._incidents):
            counted.clear()

    def __bool__(self) -> bool:
        """Whether there is anything to write down."""
        return bool(self._up or self._down or self._incidents)
