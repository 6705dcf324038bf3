"""Whether there is a shorter way to a round's weights than their whole file. Pure.

Rule: a difference counts if the file that it starts from is held: the newest weights of the device, or those that came with the
version. Of several the shortest is taken. What part of the whole file may be on disk already from an earlier attempt is not
looked at: that file was given up for a reason, or belongs to a round that has passed.
"""

from edgefl.device.state import Session
from edgefl.wire.files import Difference
from edgefl.wire.rounds import RoundOrder


def shortest(state: Session, order: RoundOrder) -> Difference | None:
    """The shortest usable difference that the order offers; None if there is none, or if the weights themselves are held."""
    files = state.active.files if state.active else ()
    held = {state.adopted, *(ref.sha256 for ref in files if ref.role == "weights")}
    usable = () if order.weights.sha256 in held else (d for d in order.differences if d.base in held)
    return min(usable, key=lambda difference: difference.file.length, default=None)
