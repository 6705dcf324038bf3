"""How floats move: by whole steps of a power of two, and by units in the last place; the arithmetic of the downlink.

Model: a float that changes is put on the grid of multiples of 2**-20 and moved by a whole number of steps of 2**-e, e from 0 to
20. Below 16 in magnitude such sums are exact in float32, so that one move over several rounds ends where the single ones do. What
does not end there (fp16, int8's scales, large weights) is corrected by a number of *ordinals*, the places of floats in ascending
order.

Rule: only IEEE operations that round exactly are used (a multiplication by a power of two, an addition, a rounding), so that
every machine gets the same bits.
"""

import numpy as np
import numpy.typing as npt

from edgefl.codec.integers import Integers

GRID = 20
"""Floats that change become multiples of 2**-20: four times finer than float16 at 1, exact in float32 below 16."""
_SAMPLE = 4096

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.floating]


def on_grid(values: Floats) -> Doubles:
    """The nearest multiple of 2**-20 of each."""
    return np.rint(values.astype(np.float64) * 2.0**GRID) * 2.0**-GRID


def move(values: Floats, steps: Doubles, exponent: int) -> Floats:
    """Values on the grid, moved by so many steps of 2**-exponent, rounded to their type."""
    with np.errstate(over="ignore", invalid="ignore"):  # of a base or difference that is not what it should be
        return (on_grid(values) + steps * 2.0**-exponent).astype(values.dtype)


def steps_between(before: Floats, after: Floats, exponent: int) -> Doubles:
    """How many steps lead from a value to the next, to the nearest; zero where that is no number of a sensible size."""
    steps = np.rint((on_grid(after) - on_grid(before)) * 2.0**exponent)
    return np.where(np.abs(steps) < 1 << 31, steps, 0.0) + 0.0  # no negative zeros, which a reader does not see


def best_exponent(before: Floats, after: Floats) -> int:
    """The exponent that makes steps and corrections of a sample cheapest; of equals the largest step."""
    stride = -(-len(before) // _SAMPLE) or 1
    before, after = before[::stride], after[::stride]
    wanted = ordinals_of(after)

    def cost(exponent: int) -> float:
        steps = steps_between(before, after, exponent)
        corrections = wanted - ordinals_of(move(before, steps, exponent))
        return float(np.log2(1.0 + 2.0 * np.abs(steps)).sum() + np.log2(1.0 + 2.0 * np.abs(corrections)).sum())

    return min(range(GRID + 1), key=cost)


def bits_of(values: Floats) -> npt.NDArray[np.signedinteger]:
    """The bits of each as an integer, as a view: what tells floats apart that compare as equal, and finds equal NaN."""
    return values.view(f"<i{values.itemsize}")


def ordinals_of(values: Floats) -> Integers:
    """The place of each float among all floats of its type in ascending order: neighbours differ by one."""
    bits = bits_of(values).astype(np.int64)
    return np.where(bits < 0, bits ^ ((1 << (8 * values.itemsize - 1)) - 1), bits)


def floats_at(ordinals: Integers, kind: np.dtype[np.floating]) -> Floats:
    """The floats of this type at these places, each in the range of its ordinals; the inverse of `ordinals_of`."""
    bits = np.where(ordinals < 0, ordinals ^ ((1 << (8 * kind.itemsize - 1)) - 1), ordinals)
    return bits.astype(f"<i{kind.itemsize}").view(kind)
