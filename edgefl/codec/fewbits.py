"""Weights as a scale per output channel times a small number: int4 and ternary.

Model: value = scale * q. For int4 q is -7 to 7, and of eight scales the one with the least squared error is taken, the largest
being the one that just holds the channel: a few clipped weights cost less than coarser steps for all (Banner et al. 2019,
https://arxiv.org/abs/1810.05723). For ternary q is -1 to 1; weights up to 0.7 of the mean magnitude become 0, and the scale is
the mean magnitude of the others (Li, Zhang and Liu 2016, Ternary Weight Networks, https://arxiv.org/abs/1605.04711).

Rules: a scale is a positive float32 whose lower 16 bits are zero, so that it takes two bytes and reaches as far as any weight.
Tensors that are not quantised stay float32. What was decoded is a fixed point: encoded once more it is the same.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from edgefl.codec.precision import Precision, is_quantised
from edgefl.codec.symbols import Shape, Symbols, packed_size, read_symbols, write_symbols
from edgefl.errors import MessageError
from edgefl.layout import Float32, Layout, Tensor

THRESHOLD = 0.7
FACTORS = tuple(1.0 - 0.07 * step for step in range(8))

_LARGEST = {Precision.INT4: 7, Precision.TERNARY: 1}
_SMALLEST = float(np.finfo(np.float32).tiny)

Rows = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.float32]
"""Small whole numbers, as floats."""


def fewbits_length(layout: Layout, precision: Precision) -> int:
    """Bytes that the body takes at most, and takes where coding it does not pay."""
    kept = sum(4 * t.size for t in layout.tensors if not is_quantised(t))
    scales = sum(2 * t.shape[0] for t in layout.tensors if is_quantised(t))
    return kept + scales + sum(map(packed_size, _shapes(layout, precision)))


def write_fewbits(flat: Float32, layout: Layout, precision: Precision) -> tuple[int, bytes]:
    """Form of the symbols, and the body: kept float32, upper halves of the scales, symbols."""
    kept: list[bytes] = []
    scales: list[bytes] = []
    matrices: list[Symbols] = []
    largest = _LARGEST[precision]
    for tensor, place in layout.slices():
        if not is_quantised(tensor):
            kept.append(flat[place].astype("<f4").tobytes())
            continue
        rows = flat[place].reshape(tensor.shape[0], -1)
        scale, numbers = _clipped(rows) if precision == Precision.INT4 else _ternary(rows)
        scales.append((scale.view(np.uint32) >> 16).astype("<u2").tobytes())
        # 0 stays 0; -largest .. -1 become 1 .. largest; 1 .. largest follow.
        signed = numbers.astype(np.int16)
        matrices.append(np.where(signed < 0, signed + largest + 1, np.where(signed, signed + largest, 0)).astype(np.uint8))
    form, symbols = write_symbols(list(zip(_shapes(layout, precision), matrices, strict=True)))
    return form, b"".join([*kept, *scales, symbols])


def read_fewbits(form: int, body: memoryview, layout: Layout, precision: Precision) -> Float32:
    """The flat vector in a body; infinite or NaN where the body says so. Raises MessageError."""
    kept_end = sum(4 * t.size for t in layout.tensors if not is_quantised(t))
    scale_end = kept_end + sum(2 * t.shape[0] for t in layout.tensors if is_quantised(t))
    if len(body) < scale_end:
        raise MessageError("weights file is truncated", expected=f"{scale_end} bytes or more", found=f"{len(body)}")
    kept = np.frombuffer(body[:kept_end], dtype="<f4").astype(np.float32)
    scales = (np.frombuffer(body[kept_end:scale_end], dtype="<u2").astype(np.uint32) << 16).view(np.float32)
    if len(scales) and not (scales >= _SMALLEST).all():
        raise MessageError("a weights file has a scale that cannot be", expected="positive normal numbers")
    matrices = iter(read_symbols(form, body[scale_end:], list(_shapes(layout, precision))))
    flat = np.empty(layout.size, dtype=np.float32)
    kept_at = row_at = 0
    for tensor, place in layout.slices():
        if is_quantised(tensor):
            scale = scales[row_at : row_at + tensor.shape[0]]
            row_at += tensor.shape[0]
            with np.errstate(over="ignore", invalid="ignore"):  # a damaged scale; the caller refuses what is not finite
                flat[place] = (_numbers(next(matrices), _LARGEST[precision]) * scale[:, None]).reshape(-1)
        else:
            flat[place] = kept[kept_at : kept_at + tensor.size]
            kept_at += tensor.size
    return flat


def rounded(flat: Float32, layout: Layout, precision: Precision) -> Float32:
    """What a file of these weights holds, int4 or ternary: the same as writing and reading it, without its symbols."""
    found = flat.copy()
    for tensor, place in layout.slices():
        if is_quantised(tensor):
            rows = flat[place].reshape(tensor.shape[0], -1)
            scale, numbers = _clipped(rows) if precision == Precision.INT4 else _ternary(rows)
            found[place] = (numbers * scale[:, None]).reshape(-1) + np.float32(0.0)  # a negative zero is a mark (codec.marks)
    return found


def _numbers(symbols: Symbols, largest: int) -> Numbers:
    """The number that each symbol stands for."""
    table = np.array([0, *range(-largest, 0), *range(1, largest + 1)], dtype=np.float32)
    return table[symbols]


def _shapes(layout: Layout, precision: Precision) -> Iterator[Shape]:
    return (matrix_shape(tensor, 2 * _LARGEST[precision]) for tensor in layout.tensors if is_quantised(tensor))


def matrix_shape(tensor: Tensor, kinds: int) -> Shape:
    """A tensor with at least two axes as a matrix with a row for each index of its first."""
    return Shape(tensor.shape[0], tensor.size // tensor.shape[0], kinds)


def _scale(wanted: npt.NDArray[np.floating]) -> Float32:
    """The nearest scales that two bytes can say."""
    bits = np.maximum(wanted, _SMALLEST).astype(np.float32).view(np.uint32)
    rounded: npt.NDArray[np.uint32] = (bits + np.uint32(0x8000)) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32)


def _clipped(rows: Rows) -> tuple[Float32, Numbers]:
    """Scales and numbers from -7 to 7 with the least squared error among some scales."""
    reach = np.abs(rows).max(axis=1) / np.float32(_LARGEST[Precision.INT4])
    best_error = np.full(len(rows), np.inf)
    best_scale, best = np.empty(len(rows), dtype=np.float32), np.empty_like(rows)
    for factor in FACTORS:
        scale = _scale(reach * np.float32(factor))
        relative = rows / scale[:, None]
        numbers = np.clip(np.rint(relative), -7, 7)
        relative -= numbers
        error = np.einsum("ij,ij->i", relative, relative).astype(np.float64) * scale.astype(np.float64) ** 2
        better = error < best_error
        best_error[better], best_scale[better], best[better] = error[better], scale[better], numbers[better]
    return best_scale, best


def _ternary(rows: Rows) -> tuple[Float32, Numbers]:
    """Scales and numbers from -1 to 1."""
    magnitudes = np.abs(rows)
    large = magnitudes > THRESHOLD * magnitudes.mean(axis=1, keepdims=True, dtype=np.float64)
    count = np.maximum(1, large.sum(axis=1))
    scale = _scale(np.where(large, magnitudes, 0).sum(axis=1, dtype=np.float64) / count)
    return scale, np.where(large, np.sign(rows), 0).astype(np.float32)
