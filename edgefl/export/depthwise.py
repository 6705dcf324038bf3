"""Depthwise convolution in two dimensions: one kernel for each channel, and no sum over channels.

Model: ONNX Runtime computes it plane by plane, one matrix product with a single row for each example and channel. Where planes
are small, that overhead is most of the time. Then the convolution of a channel is written as what it is, a linear map from the
plane's places to the output's, and all examples go through it in one product. The map is a band matrix made of the kernel.

Rules: the gradient by the kernel of larger planes is element-wise, tap by tap, because a product with a single row is slow. Rows
are padded once and then lie one behind the other, in the gradient too, so that every window is one run of the plane; the
gradient's padding is zero, so what a run has too much does not count. With a stride, each residue is a plane of its own.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from edgefl.export.tiles import tile_members

aten = torch.ops.aten
Ints = Sequence[int]

DENSE = 12_500
"""Places of the input times places of the output, with the setting-up of a matrix counted in, up to which maps are matrices."""
SETTING_UP = 16
"""Making and packing a matrix costs about as much as this many examples do."""


def is_dense(examples: int, extent: Ints, out: Ints) -> bool:
    """Whether so many planes of this size, for each channel, go through matrices."""
    return len(extent) == 2 and math.prod(extent) * math.prod(out) * (examples + SETTING_UP) <= DENSE * examples


def dense(x: Tensor, weight: Tensor, out: Ints, stride: Ints, padding: Ints, dilation: Ints) -> Tensor:
    """The convolution of `(n, channels, h, w)` with `(channels, 1, *kernel)`: `(n, channels, *out)`."""
    matrices = _matrices(weight, x.shape[2:], out, stride, padding, dilation)
    return _examples_first(torch.bmm(_channels_first(x), matrices), out)


def dense_input_gradient(grad: Tensor, weight: Tensor, extent: Ints, stride: Ints, padding: Ints, dilation: Ints) -> Tensor:
    """`(n, channels, *extent)`."""
    matrices = _matrices(weight, extent, grad.shape[2:], stride, padding, dilation)
    return _examples_first(torch.bmm(_channels_first(grad), matrices.transpose(1, 2)), extent)


def weight_gradient(grad: Tensor, x: Tensor, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints) -> Tensor:
    """`(channels, 1, *kernel)`."""
    extent, out = x.shape[2:], grad.shape[2:]
    if is_dense(len(x), extent, out):
        matrices = torch.bmm(_channels_first(x).transpose(1, 2), _channels_first(grad))
        bands = _bands(kernel, extent, out, stride, padding, dilation).to(grad.dtype)
        return torch.mm(matrices.reshape(len(matrices), -1), bands.t()).reshape(-1, 1, *kernel)
    n, channels, high, wide = grad.shape
    reach = [s * (o - 1) + d * (k - 1) + 1 for s, o, d, k in zip(stride, out, dilation, kernel, strict=True)]
    room = [-(-r // s) * s for r, s in zip(reach, stride, strict=True)]
    row = room[1] // stride[1]
    run = (high - 1) * row + wide
    planes = _padded(x.reshape(n * channels, *extent), padding, room)
    residues = [plane.reshape(n, channels, -1) for plane in tile_members(planes, stride)]
    rows = _padded(grad.reshape(n * channels, high, wide), (0, 0), (high, row)).reshape(n, channels, -1)[:, :, :run]
    sums = []
    for i, j in itertools.product(*(range(k) for k in kernel)):
        (down, top), (right, left) = (divmod(t * d, s) for t, d, s in zip((i, j), dilation, stride, strict=True))
        begin = down * row + right
        sums.append((residues[top * stride[1] + left][:, :, begin : begin + run] * rows).sum((0, 2)))
    return torch.stack(sums, 1).reshape(channels, 1, *kernel)


def _padded(planes: Tensor, before: Ints, room: Ints) -> Tensor:
    """Planes `(p, h, w)` with so many zeros before each axis, brought to this size."""
    p, h, w = planes.shape
    planes = planes[:, : room[0] - before[0], : room[1] - before[1]]
    h, w = planes.shape[1:]
    sides = [planes.new_zeros(p, h, count) for count in (before[1], room[1] - before[1] - w)]
    planes = torch.cat([sides[0], planes, sides[1]], 2)
    above, below = before[0] * room[1], (room[0] - before[0] - h) * room[1]
    padded: Tensor = aten.constant_pad_nd(planes.reshape(p, -1), [above, below], 0.0)
    return padded.reshape(p, *room)


def _matrices(weight: Tensor, extent: Ints, out: Ints, stride: Ints, padding: Ints, dilation: Ints) -> Tensor:
    """`(channels, places in, places out)`."""
    bands = _bands(weight.shape[2:], extent, out, stride, padding, dilation).to(weight.dtype)
    return torch.mm(weight.reshape(len(weight), -1), bands).reshape(len(weight), math.prod(extent), math.prod(out))


def _bands(kernel: Ints, extent: Ints, out: Ints, stride: Ints, padding: Ints, dilation: Ints) -> Tensor:
    """`(taps, places in * places out)`: 1 where a tap of the kernel brings an input to an output."""
    (down, across) = (
        (torch.arange(k)[:, None, None] * d + torch.arange(o)[None, None, :] * s - p) == torch.arange(e)[None, :, None]
        for k, e, o, s, p, d in zip(kernel, extent, out, stride, padding, dilation, strict=True)
    )
    both = torch.logical_and(down[:, None, :, None, :, None], across[None, :, None, :, None, :])
    return both.reshape(math.prod(kernel), -1)


def _channels_first(x: Tensor) -> Tensor:
    """`(n, channels, h, w)` as `(channels, n, places)`."""
    return x.reshape(*x.shape[:2], -1).transpose(0, 1)


def _examples_first(x: Tensor, extent: Ints) -> Tensor:
    return x.transpose(0, 1).reshape(x.shape[1], x.shape[0], *extent)
