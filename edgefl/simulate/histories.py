"""The histories that updates are coded against, as devices and server know them: looked up by two round numbers.

Model: what is worked out of a history once (`History.levels`) serves all updates that were coded with it; so a few are kept.
"""

from collections import OrderedDict
from collections.abc import Callable

from edgefl.codec.history import History
from edgefl.codec.marks import alive
from edgefl.device.coding import carried, shapes_of
from edgefl.layout import Float32, Index, Layout

Weights = Callable[[int], Float32]
"""The weights that devices of a round train from, in the layout's order; of round 0: the first ones."""
MOST = 10


class Histories:
    """Histories of one simulation.

    Args:
        layout: of the weights.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._shapes = shapes_of(layout)
        self._known: OrderedDict[tuple[int, int], History] = OrderedDict()
        self._alive: OrderedDict[int, Index | None] = OrderedDict()

    def of(self, weights: Weights, before: int, now: int) -> History:
        """The history of a device that trains from the round `now` and holds the weights of the round `before`."""
        key = (before, now)
        if key not in self._known:
            start, held, current = (carried(self._layout, weights(number)) for number in (0, before, now))
            self._known[key] = History(start, held, current, self._shapes).only(self.alive(weights, now))
        self._known.move_to_end(key)
        if len(self._known) > MOST:
            self._known.popitem(last=False)
        return self._known[key]

    def alive(self, weights: Weights, now: int) -> Index | None:
        """What updates that are trained from a round's weights are about, among the coordinates that they carry; None: all."""
        if now not in self._alive:
            self._alive[now] = alive(weights(now), self._layout)
        self._alive.move_to_end(now)
        if len(self._alive) > MOST:
            self._alive.popitem(last=False)
        return self._alive[now]
