"""Operators that ONNX has and ATen has not, as torch operators with a translation.

Model: a trace of a training step is rewritten (`lowering`) until every operator has an ONNX form. Where ATen has no equal of
the ONNX operator that runs fastest, the trace uses one of these. Each has a torch implementation, so that a trace can be run
in torch, a shape rule for tracing without computing, and an entry in `TRANSLATIONS` for the exporter.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnxscript import opset18 as onnx_op
from torch import Tensor

aten = torch.ops.aten


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


def _constant(*values: int) -> Any:
    return onnx_op.Constant(value=onnx.numpy_helper.from_array(np.array(values, dtype=np.int64)))


def _to_max_pool(x: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: Any) -> Any:
    return onnx_op.MaxPool(
        x,
        kernel_shape=list(kernel),
        strides=list(stride),
        pads=[*padding, *padding],
        dilations=list(dilation),
        ceil_mode=int(ceil_mode),
    )


def _to_max_unpool(grad: Any, index: Any, shape: Any, kernel: Any, stride: Any) -> Any:
    return onnx_op.MaxUnpool(grad, index, _constant(*shape), kernel_shape=list(kernel), strides=list(stride))


def _to_scatter_sum(grad: Any, index: Any, shape: Any) -> Any:
    zeros = onnx_op.ConstantOfShape(_constant(math.prod(shape)))
    flat = _constant(-1)
    summed = onnx_op.ScatterElements(zeros, onnx_op.Reshape(index, flat), onnx_op.Reshape(grad, flat), axis=0, reduction="add")
    return onnx_op.Reshape(summed, _constant(*shape))


TRANSLATIONS: Mapping[Callable[..., object], Callable[..., object]] = {
    torch.ops.edgefl.max_pool.default: _to_max_pool,
    torch.ops.edgefl.max_unpool.default: _to_max_unpool,
    torch.ops.edgefl.scatter_sum.default: _to_scatter_sum,
}
"""For the exporter's `custom_translation_table`."""
