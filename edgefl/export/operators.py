"""Operators that ONNX has and ATen has not, as torch operators with a translation.

Model: a trace of a training step is rewritten (`lowering`) until every operator has an ONNX form. Where ATen has no equal of
the ONNX operator that runs fastest, the trace uses one of these. Each has a torch implementation, so that a trace can be run
in torch, a shape rule for tracing without computing, and an entry in `TRANSLATIONS` for the exporter.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnxscript import opset18
from torch import Tensor

aten = torch.ops.aten

onnx_op: Any = opset18  # its annotations are about evaluation, and these functions trace

MAX_MEMBERS = 9
"""Members of a window up to which they are separated: a 3x3 window's."""


@torch.library.custom_op("edgefl::max_pool", mutates_args=())
def max_pool(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,  # noqa: FBT001  an operator's schema
) -> tuple[Tensor, Tensor]:
    """Largest value of each window of `(n, c, h, w)`, and its index in the whole flattened `x` (not, as in ATen, in a plane)."""
    value: Tensor
    value, index = aten.max_pool2d_with_indices(x, kernel, stride, padding, dilation, ceil_mode)
    n, c, h, w = x.shape
    return value, index + torch.arange(n * c).reshape(n, c, 1, 1) * (h * w)


@max_pool.register_fake
def _(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,  # noqa: FBT001  an operator's schema
) -> tuple[Tensor, Tensor]:
    value: Tensor
    index: Tensor
    value, index = aten.max_pool2d_with_indices(x, kernel, stride, padding, dilation, ceil_mode)
    return value, index


@torch.library.custom_op("edgefl::max_unpool", mutates_args=())
def max_unpool(grad: Tensor, index: Tensor, shape: Sequence[int], kernel: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Zeros of `shape` with each value of `grad` where `index` says, for windows that do not overlap."""
    del kernel, stride  # ONNX asks for them; the indices say it all
    return torch.zeros(math.prod(shape)).scatter(0, index.flatten(), grad.flatten()).reshape(list(shape))


@max_unpool.register_fake
def _(grad: Tensor, index: Tensor, shape: Sequence[int], kernel: Sequence[int], stride: Sequence[int]) -> Tensor:
    del index, kernel, stride
    return grad.new_empty(list(shape))


@torch.library.custom_op("edgefl::scatter_sum", mutates_args=())
def scatter_sum(grad: Tensor, index: Tensor, shape: Sequence[int]) -> Tensor:
    """Zeros of `shape` to which each value of `grad` is added where `index` says; an index may come several times."""
    return torch.zeros(math.prod(shape)).scatter_add(0, index.flatten(), grad.flatten()).reshape(list(shape))


@scatter_sum.register_fake
def _(grad: Tensor, index: Tensor, shape: Sequence[int]) -> Tensor:
    del index
    return grad.new_empty(list(shape))


@torch.library.custom_op("edgefl::positive", mutates_args=())
def positive(x: Tensor) -> Tensor:
    """1 where `x` is above zero and 0 elsewhere, in the type of `x`."""
    return (x > 0.0).to(x.dtype)


@positive.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("edgefl::affine", mutates_args=())
def affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """`x * scale + shift` of `(rows, length)` in one pass; scale and shift have one value for each row."""
    return x * scale[:, None] + shift[:, None]


@affine.register_fake
def _(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    del scale, shift
    return torch.empty_like(x)


def _constant(*values: int) -> Any:
    return _value(np.array(values, dtype=np.int64))


def _value(array: npt.NDArray[Any]) -> Any:
    return onnx_op.Constant(value=onnx.numpy_helper.from_array(array))


def _to_max_pool(x: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: Any) -> Any:
    n, c, h, w = x.shape
    tiles = list(kernel) == list(stride) and not any(padding) and max(dilation) == 1 and not (h % kernel[0] or w % kernel[1])
    if tiles and 1 < math.prod(kernel) <= MAX_MEMBERS:
        return _tiled_max_pool(x, n * c, (h, w), tuple(kernel))
    return onnx_op.MaxPool(
        x,
        kernel_shape=list(kernel),
        strides=list(stride),
        pads=[*padding, *padding],
        dilations=list(dilation),
        ceil_mode=int(ceil_mode),
    )


def _tiled_max_pool(x: Any, planes: int, extent: tuple[int, int], kernel: tuple[int, int]) -> Any:
    """Each member of the windows as a tensor of its own; largest value and index are then element-wise arithmetic.

    ONNX Runtime finds indices by branches, at more than ten times the cost of the values. Ties go to the first member, as there.
    """
    (h, w), (high, wide) = extent, kernel
    columns = onnx_op.Transpose(onnx_op.Reshape(x, _constant(-1, wide)), perm=[1, 0])
    columns = onnx_op.Reshape(columns, _constant(wide, planes, h // high, high, w // wide))
    flat = _constant(wide, -1)  # axes of length 1 make ONNX Runtime's broadcasting slow
    rows = [onnx_op.Reshape(onnx_op.Slice(columns, _constant(i), _constant(i + 1), _constant(3)), flat) for i in range(high)]
    members = [onnx_op.Slice(row, _constant(j), _constant(j + 1), _constant(0)) for row in rows for j in range(wide)]
    value = onnx_op.Max(*members)
    # While no member so far was the largest, the index moves on to the next. In 32 bits, for half the traffic.
    places = [i * w + j for i in range(high) for j in range(wide)]
    later = offset = None
    for member, place, following in zip(members, places, places[1:], strict=False):
        smaller = onnx_op.Less(member, value)
        later = smaller if later is None else onnx_op.And(later, smaller)
        move = onnx_op.Cast(later, to=onnx.TensorProto.INT32)
        if following - place > 1:
            move = onnx_op.Mul(move, _value(np.array(following - place, dtype=np.int32)))
        offset = move if offset is None else onnx_op.Add(offset, move)
    first = np.arange(0, planes * h * w, high * w)[:, None] + np.arange(0, w, wide)
    offset = onnx_op.Reshape(onnx_op.Cast(offset, to=onnx.TensorProto.INT64), _constant(*first.shape))
    index = onnx_op.Add(offset, _value(first))
    shape = _constant(*x.shape[:2], h // high, w // wide)
    return onnx_op.Reshape(value, shape), onnx_op.Reshape(index, shape)


def _to_max_unpool(grad: Any, index: Any, shape: Any, kernel: Any, stride: Any) -> Any:
    return onnx_op.MaxUnpool(grad, index, _constant(*shape), kernel_shape=list(kernel), strides=list(stride))


def _to_scatter_sum(grad: Any, index: Any, shape: Any) -> Any:
    zeros = onnx_op.ConstantOfShape(_constant(math.prod(shape)))
    flat = _constant(-1)
    summed = onnx_op.ScatterElements(zeros, onnx_op.Reshape(index, flat), onnx_op.Reshape(grad, flat), axis=0, reduction="add")
    return onnx_op.Reshape(summed, _constant(*shape))


def _to_affine(x: Any, scale: Any, shift: Any) -> Any:
    # Normalisation with the rows as channels, mean 0 and variance 1: the only operator of ONNX that multiplies and adds at once.
    rows = _constant(scale.shape[0])
    zero, one = (onnx_op.ConstantOfShape(rows, value=onnx.numpy_helper.from_array(np.full(1, v, np.float32))) for v in (0, 1))
    channels = onnx_op.Unsqueeze(x, _constant(0))
    return onnx_op.Squeeze(onnx_op.BatchNormalization(channels, scale, shift, zero, one, epsilon=0.0), _constant(0))


def _to_positive(x: Any) -> Any:
    # clip(3e38 * x, 0, 1) in one vectorised pass: exact but for denormal numbers, which no activation is.
    return onnx_op.HardSigmoid(x, alpha=3e38, beta=0.0)


def _to_squeeze(x: Any, dims: Sequence[int]) -> Any:
    ones = [dim for dim in dims if x.shape[dim] == 1] if x.shape else []  # ATen leaves other axes; ONNX refuses them
    return onnx_op.Squeeze(x, ones) if ones else onnx_op.Identity(x)


TRANSLATIONS: Mapping[Callable[..., object], Callable[..., object]] = {
    torch.ops.edgefl.max_pool.default: _to_max_pool,
    torch.ops.edgefl.max_unpool.default: _to_max_unpool,
    torch.ops.edgefl.affine.default: _to_affine,
    torch.ops.edgefl.positive.default: _to_positive,
    torch.ops.edgefl.scatter_sum.default: _to_scatter_sum,
    aten.squeeze.dims: _to_squeeze,
}
"""For the exporter's `custom_translation_table`. The last is ATen's own, which the exporter would trace again to take apart."""
