"""What a device stores from one update to the next, in bytes: what planner, plan and board reckon with.

Model: the memory (`edgefl.codec.compress.Memory`) has a float32 for each parameter that updates carry, with momentum correction
two: residual and velocity. A new memory is in the outbox before the settled one is given up, so that a board has room for both.
"""

from edgefl.layout import Layout

FLOAT_BYTES = 4
SETTLED_AND_NEW = 2


def memory_bytes(layout: Layout, *, correction: bool = False) -> int:
    """Bytes of disk that the memory of a variant takes at most.

    Args:
        layout: of the variant; frozen and personal tensors have no memory.
        correction: whether a velocity is kept beside the residual.
    """
    return SETTLED_AND_NEW * FLOAT_BYTES * (2 if correction else 1) * layout.carried
