"""Whose block goes next: lanes take turns, one block each. Pure."""

from collections import deque
from collections.abc import Mapping

from edgefl.server.lanes import LaneName


def in_turn(left: Mapping[LaneName, int], room: int, *, spaced: bool) -> tuple[dict[LaneName, int], tuple[LaneName, ...]]:
    """Up to `room` blocks, one of each lane in turn, lowest first.

    Args:
        left: bitmap of the blocks that are due, by lane, in the order of rotation.
        room: how many blocks may go.
        spaced: one block of a lane to one device is all that is due.

    Returns:
        the chosen blocks of each lane that has some, and the lanes left with due blocks, next one first.
    """
    rest, order, chosen = dict(left), deque(left), dict.fromkeys(left, 0)
    served: set[str] = set()
    while order and room > 0:
        name = order.popleft()
        if name[1] in served:
            continue
        low = rest[name] & -rest[name]
        rest[name] ^= low
        chosen[name] |= low
        room -= 1
        if name[1] and spaced:
            served.add(name[1])
        elif rest[name]:
            order.append(name)
    return {name: bits for name, bits in chosen.items() if bits}, tuple(name for name in order if name[1] not in served)
