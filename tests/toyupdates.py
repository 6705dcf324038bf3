"""The toy fleet's model in two widths, what its devices send, and what a round must make of it.

Every update is known beforehand: the same device sends the same for the same round. `reference` is the slow and plain way to the
next parent.

No test in here. A test module imports it by its name (`pythonpath` in pyproject.toml).
"""

import hashlib

import numpy as np

from edgefl.aggregate.mean import polynomial_staleness
from edgefl.codec.update import decode as decode_update
from edgefl.codec.update import encode as encode_update
from edgefl.codec.weights import Precision
from edgefl.layout import Layout, Tensor, nested_index
from edgefl.wire.rounds import PART_SIZE, UpdatePart

MODEL = "toy"
WIDE = Layout((Tensor("a.weight", (8, 10)), Tensor("a.bias", (8,)), Tensor("b.weight", (4, 8))))
NARROW = Layout((Tensor("a.weight", (4, 10)), Tensor("a.bias", (4,)), Tensor("b.weight", (4, 4))))
VARIANTS = {"big": ("w1-fp32", WIDE, Precision.FP32), "small": ("w0.5-int8", NARROW, Precision.INT8)}
"""Variant, layout and precision of each profile."""


def update_of(device, number, size, scale=0.01, sparsity=0.2, bits=4):
    """The encoded update of a device for a round: always the same for the same device and round."""
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(f"{device}/{number}".encode()).digest()[:8], "big"))
    vector = rng.normal(scale=scale, size=size).astype(np.float32)
    return encode_update(vector, sparsity=sparsity, bits=bits, rng=rng).data


def head_of(device, number, data, *, variant, samples=None, version=1, model=MODEL, loss=1.0):
    """The head of an update in one part."""
    samples = samples_of(device) if samples is None else samples
    return UpdatePart(model, version, variant, number, samples, 2.0, loss, hashlib.sha256(data).digest(), 0, 1, data[:PART_SIZE])


def samples_of(device):
    """Examples that a device has."""
    return 10 + sum(device.encode())


def reference(parent, updates, *, number, rate=1.0):
    """The next parent, computed densely in float64: updates as (device, profile, round trained for)."""
    total, weight = np.zeros(len(parent)), np.zeros(len(parent))
    for device, profile, trained_for in updates:
        _, layout, _ = VARIANTS[profile]
        index = nested_index(WIDE, layout)
        sparse = decode_update(update_of(device, trained_for, layout.size), layout.size)
        dense = np.zeros(layout.size)
        dense[sparse.positions] = sparse.values
        w = samples_of(device) * polynomial_staleness(number - trained_for)
        total[index] += w * dense
        weight[index] += w
    return parent + rate * np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)
