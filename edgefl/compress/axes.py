"""Which rows, columns, ... of its parent's tensors a variant keeps, as a few bytes: one bit for each row of each axis.

    msgpack: for each tensor of the variant, in its layout's order, a list with one entry for each axis:
             empty if every row is kept, else a bitmap, least significant bit of byte 0 first

Model: with the parent's layout these bytes give the index map of a variant, whatever chose the rows. Pure.
"""

from collections.abc import Mapping

import msgspec
import numpy as np

from edgefl.errors import ModelError
from edgefl.layout import Index, Layout, index_map

Axes = Mapping[str, tuple[Index, ...]]
"""For each tensor name one ascending array for each axis."""


def encode_axes(parent: Layout, child: Layout, axes: Axes) -> bytes:
    """The bytes; `axes` as `index_map` takes them, ascending."""
    whole = {tensor.name: tensor for tensor in parent.tensors}
    return msgspec.msgpack.encode(
        [[_bitmap(rows, length) for rows, length in zip(axes[t.name], whole[t.name].shape, strict=True)] for t in child.tensors]
    )


def decode_axes(parent: Layout, child: Layout, data: bytes) -> Axes:
    """What `encode_axes` was given.

    Raises:
        ModelError: these bytes do not belong to these layouts.
    """
    whole = {tensor.name: tensor for tensor in parent.tensors}
    try:
        listed = msgspec.msgpack.decode(data, type=list[list[bytes]])
        return {
            t.name: tuple(_rows(bits, length) for bits, length in zip(axes, whole[t.name].shape, strict=True))
            for t, axes in zip(child.tensors, listed, strict=True)
        }
    except (msgspec.MsgspecError, ValueError, KeyError) as error:
        raise ModelError("the rows that a variant keeps are damaged", found=str(error), remedy="Push the model again") from error


def index_from_axes(parent: Layout, child: Layout, data: bytes) -> Index:
    """The index map of a variant, int64 of `child.size` values. Raises ModelError."""
    return index_map(parent, child, decode_axes(parent, child, data))


def axes_from_index(parent: Layout, child: Layout, index: Index) -> Axes:
    """The rows of each axis of an index map whose tensors are sub-grids of the parent's.

    Raises:
        ModelError: a tensor is none.
    """
    whole = {tensor.name: (tensor, place.start) for tensor, place in parent.slices()}
    axes: dict[str, tuple[Index, ...]] = {}
    for tensor, place in child.slices():
        if tensor.name not in whole or len(whole[tensor.name][0].shape) != len(tensor.shape):
            raise ModelError(f"the variant's tensor {tensor.name!r} does not exist in the parent model")
        of, start = whole[tensor.name]
        grid = np.stack(np.unravel_index((index[place] - start) % of.size, of.shape)).reshape(len(of.shape), *tensor.shape)
        axes[tensor.name] = tuple(
            grid[axis][tuple(slice(None) if i == axis else 0 for i in range(len(of.shape)))] for axis in range(len(of.shape))
        )
    if not np.array_equal(index_map(parent, child, axes), index):
        raise ModelError("the variant is no part of its parent", expected="whole rows and columns of its tensors")
    return axes


def _bitmap(rows: Index, length: int) -> bytes:
    if len(rows) == length:
        return b""
    bits = np.zeros(length, dtype=np.uint8)
    bits[rows] = 1
    return np.packbits(bits, bitorder="little").tobytes()


def _rows(bits: bytes, length: int) -> Index:
    if not bits:
        return np.arange(length, dtype=np.int64)
    if len(bits) != (length + 7) // 8:
        raise ValueError(f"{len(bits)} bytes for {length} rows")
    return np.flatnonzero(np.unpackbits(np.frombuffer(bits, dtype=np.uint8), count=length, bitorder="little")).astype(np.int64)
