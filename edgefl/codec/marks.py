"""Which weights of a model have been pruned for good, said by the weights themselves: a pruned weight is negative zero.

Model: a float has two zeros that every computation takes for the same; training, averaging and rounding end at the positive one
but for the rarest underflow. So the negative one can say of a coordinate that it is *gone*: it stays zero, devices do not train
it and updates do not carry it. The mark is a value like any other: index maps, weight files, histories and whatever else carries
a vector carry it, and two ends that hold the same weights agree on what is gone without another word.

Rules: only trained tensors that are shared and that int8 quantises can be pruned (biases and norms are few and hurt most, and
what lives on one device is not the server's to prune). A negative zero elsewhere means nothing. A weight that is zero without the
mark, as zero-initialised tensors have, is there.
"""

import numpy as np
import numpy.typing as npt

from edgefl.codec.precision import is_quantised
from edgefl.layout import Float32, Index, Layout, Tensor

Flags = npt.NDArray[np.bool_]

_MARK = np.uint32(0x80000000)
"""The bits of -0.0."""


def is_prunable(tensor: Tensor) -> bool:
    """Whether weights of this tensor may be removed."""
    return tensor.role == "trained" and not tensor.personal and is_quantised(tensor)


def prunable(layout: Layout) -> Flags:
    """Which coordinates may be removed; bool, shape `(layout.size,)`."""
    flags = np.zeros(layout.size, dtype=np.bool_)
    for tensor, place in layout.slices():
        flags[place] = is_prunable(tensor)
    return flags


def gone(flat: Float32, layout: Layout) -> Flags:
    """Which coordinates have been removed.

    Args:
        flat: float32, shape `(layout.size,)`.
        layout: of it.

    Returns:
        bool, shape `(layout.size,)`.
    """
    found = has_mark(flat)
    return found & prunable(layout) if found.any() else found


def has_mark(flat: Float32) -> Flags:
    """Which values are negative zero; bool, in the shape of the vector."""
    found: Flags = np.ascontiguousarray(flat, dtype=np.float32).view(np.uint32) == _MARK
    return found


def marked(flat: Float32, removed: Flags) -> Float32:
    """A copy of a vector without these coordinates; the vector itself if there are none."""
    if not removed.any():
        return flat
    copy = flat.copy()
    copy[removed] = np.float32(-0.0)
    return copy


def factors(flat: Float32, layout: Layout) -> Float32 | None:
    """0 for each coordinate that is gone, 1 for each other, as training wants them; None if none is gone."""
    removed = gone(flat, layout)
    return (~removed).astype(np.float32) if removed.any() else None


def alive(flat: Float32, layout: Layout) -> Index | None:
    """What an update is made of, among the coordinates that updates of this layout carry: those that are not gone.

    Args:
        flat: the weights that were trained from, float32, shape `(layout.size,)`.
        layout: of it.

    Returns:
        int64, ascending, places in the carried vector; None if it is all of them.
    """
    removed, shared = gone(flat, layout), layout.shared()
    if not removed.any():
        return None
    return np.flatnonzero(~(removed if shared is None else removed[shared]))
