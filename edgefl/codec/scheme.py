"""How an update is coded: the part of a plan that the codec understands, with its ranges checked."""

from dataclasses import dataclass

from edgefl.errors import UpdateError

MAX_BITS = 8


@dataclass(frozen=True, slots=True)
class Scheme:
    """What is chosen and how it is written.

    Attributes:
        sparsity: fraction of coordinates to send, in (0, 1].
        bits: per sent value, 1 (ternary: sign and one magnitude) to 8.
        by_layer: whether every tensor sends this fraction of its own coordinates.
        sampled: whether the threshold is estimated from a sample.
        rotated: whether the values are rotated at random before they are quantised; needs sparsity 1.
        price: weight of a coordinate's cost in bits against its square (rate-distortion selection); 0 looks at magnitudes alone.
        correction: factor of DGC's momentum correction, in [0, 1).

    Raises:
        UpdateError: a value is out of range, or a combination is impossible.
    """

    sparsity: float = 0.02
    bits: int = 4
    by_layer: bool = False
    sampled: bool = False
    rotated: bool = False
    price: float = 0.0
    correction: float = 0.0

    def __post_init__(self) -> None:
        if not (0.0 < self.sparsity <= 1.0 and 1 <= self.bits <= MAX_BITS):
            found = f"{self.sparsity} and {self.bits}"
            raise UpdateError("impossible codec setting", expected="sparsity in (0, 1], bits 1 to 8", found=found)
        if not (self.price >= 0.0 and 0.0 <= self.correction < 1.0):
            found = f"{self.price} and {self.correction}"
            raise UpdateError("impossible codec setting", expected="price from 0, correction in [0, 1)", found=found)
        if self.rotated and self.sparsity < 1.0:
            raise UpdateError("rotated values are dense", expected="sparsity 1", found=f"{self.sparsity}")
