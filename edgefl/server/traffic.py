"""Counting what a training costs: payload bytes up and down, by model, written to the round they belong to.

Model: every message belongs to a model (an update, a round order, a block of one of its files). While the model is in training,
its bytes go to the open round; otherwise they go to the fleet's counters, so that nothing is left out. Bytes are counted at the
MQTT payload, our headers included: up as the server receives them, down as it publishes them (a multicast block once).

Rule: `flush` before a round closes; what a killed server had not flushed (at most a second's worth) is not counted.
"""

import sqlite3
from collections import defaultdict
from collections.abc import Mapping

from edgefl.store.ledger import add_counter, add_traffic


class TrafficBook:
    """Bytes not yet written down."""

    def __init__(self) -> None:
        self._up: defaultdict[str, int] = defaultdict(int)
        self._down: defaultdict[str, int] = defaultdict(int)

    def up(self, model: str, count: int) -> None:
        """Bytes from devices that concern a model; an empty name for what concerns none."""
        self._up[model] += count

    def down(self, model: str, count: int) -> None:
        """Bytes to devices that concern a model."""
        self._down[model] += count

    def flush(self, database: sqlite3.Connection, open_rounds: Mapping[str, tuple[int, int]]) -> None:
        """Write everything down; `open_rounds` gives training and round of each model in training."""
        for model in self._up.keys() | self._down.keys():
            up, down = self._up.pop(model, 0), self._down.pop(model, 0)
            if model in open_rounds:
                training, number = open_rounds[model]
                add_traffic(database, training, number, up, down)
            else:
                add_counter(database, "uplink bytes outside of trainings", up)
                add_counter(database, "downlink bytes outside of trainings", down)
