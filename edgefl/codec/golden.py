"""The golden file of a variant: a few inputs, and the outputs that its own weights must give for them on every machine.

Format: magic `EFG1`, rows, values per input, values per output (uint32, little endian), the inputs (int8, each standing for a
32nd of itself), the outputs (float32, little endian). Inputs of one byte cost a quarter of what floats cost and are the same
floats everywhere; their range of -4 to 4 is that of normalised data.

Rules: nothing is allocated before the length of the file agrees with its header; outputs must be finite.
"""

import math
import struct
from collections.abc import Sequence

import numpy as np

from edgefl.errors import MessageError, ModelError
from edgefl.layout import Float32

_HEAD = struct.Struct("<4sIII")
_MAGIC = b"EFG1"
SCALE = 32.0
"""Steps of the inputs per unit."""
ROWS = 4
ROOM = 32 * 1024
"""Bytes above which a golden file has fewer rows, but at least one."""
SEED = 0


def golden_inputs(shape: Sequence[int], outputs: int) -> Float32:
    """Inputs for a model: always the same, of shape `(rows, *shape)`, from normal numbers.

    Args:
        shape: of one input.
        outputs: values that one input gives.
    """
    size = math.prod(shape)
    rows = max(1, min(ROWS, ROOM // (size + 4 * outputs)))
    drawn = np.random.default_rng(SEED).standard_normal((rows, *shape)) * SCALE
    return (drawn.round().clip(-128, 127) / SCALE).astype(np.float32)


def golden_length(shape: Sequence[int], outputs: int) -> int:
    """Bytes of the golden file of a model with inputs of this shape and so many outputs."""
    size = math.prod(shape)
    rows = max(1, min(ROWS, ROOM // (size + 4 * outputs)))
    return _HEAD.size + rows * (size + 4 * outputs)


def encode_golden(inputs: Float32, outputs: Float32) -> bytes:
    """The file.

    Args:
        inputs: from `golden_inputs`.
        outputs: what the model gives for them, `(rows, k)`.

    Raises:
        ModelError: the outputs are not finite.
    """
    if not np.isfinite(outputs).all():
        raise ModelError(
            "the model gives NaN or infinite outputs for ordinary inputs",
            remedy="Check its weights; training has probably diverged",
        )
    steps = (inputs * SCALE).round().astype(np.int8)
    head = _HEAD.pack(_MAGIC, len(inputs), steps[0].size, outputs[0].size)
    return head + steps.tobytes() + outputs.astype("<f4").tobytes()


def decode_golden(data: bytes, shape: Sequence[int], outputs: int) -> tuple[Float32, Float32]:
    """Inputs `(rows, *shape)` and the outputs `(rows, outputs)` that they must give.

    Raises:
        MessageError: it is no golden file, or none of such a model.
    """
    size = math.prod(shape)
    head = _HEAD.unpack_from(data) if len(data) >= _HEAD.size else (b"", 0, 0, 0)
    rows = head[1]
    if head != (_MAGIC, rows, size, outputs) or rows < 1 or len(data) != _HEAD.size + rows * (size + 4 * outputs):
        raise MessageError(
            "the golden file does not belong to this model",
            expected=f"inputs of {size} values and {outputs} outputs each",
            found=f"{len(data)} bytes with the header {head[1:]}",
        )
    inputs = np.frombuffer(data, np.int8, rows * size, _HEAD.size).astype(np.float32) / np.float32(SCALE)
    wanted = np.frombuffer(data, "<f4", rows * outputs, _HEAD.size + rows * size).astype(np.float32)
    if not np.isfinite(wanted).all():
        raise MessageError("the golden file holds NaN or infinite outputs")
    return inputs.reshape(rows, *shape), wanted.reshape(rows, outputs)


def farthest(found: Float32, wanted: Float32, tolerance: float) -> float:
    """How far outputs are from what they must be, where 1 is the most that is allowed; infinite for NaN.

    Args:
        found: outputs of the model.
        wanted: what they must be, of equal shape.
        tolerance: absolute, and relative to the size of what is wanted, both together.
    """
    if found.shape != wanted.shape or not np.isfinite(found).all():
        return math.inf
    return float((np.abs(found - wanted) / (tolerance + tolerance * np.abs(wanted))).max(initial=0.0))
