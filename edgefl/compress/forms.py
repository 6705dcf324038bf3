"""In which forms weights may rest on a board once they have been retrained: pruned by so much, in so few values. Pure.

Model. A form is a precision for weights at rest, and the part of the weights that retraining prunes before. From form to form a
file becomes shorter and costs more accuracy; what one costs is measured when it is there. Before that its length is hoped to be
a part of int4's bound. A model of 199,210 parameters (`mnist-2nn` on MNIST, 97.4 % in 796,856 bytes of fp32; 1,000 steps without
labels on 10,000 images, one seed) comes to

    int4 88,312 bytes, 97.2 %   codebook 35,580, 97.1   codebook90 19,646, 96.8   ternary 15,148, 96.4   codebook95 11,054, 95.7

A board that trains has one form, the first: rounds and residuals are nearly all of its footprint (ADR 0025). A board that only
answers holds nothing but this file, and may have any (ADR 0026).
"""

from dataclasses import dataclass

from edgefl.codec.precision import Precision


@dataclass(frozen=True, slots=True)
class Form:
    """One way for weights to rest.

    Attributes:
        name: unique; what a variant's name ends with.
        precision: of the file.
        sparsity: part of the prunable weights that is zero, in [0, 1).
        hoped: part of int4's bound that the file is expected to take at most, before it is there.
    """

    name: str
    precision: Precision
    sparsity: float
    hoped: float


CODEBOOK = Form("codebook", Precision.CODEBOOK, 0.8, 0.4)
FORMS = (
    CODEBOOK,
    Form("codebook90", Precision.CODEBOOK, 0.9, 0.23),
    Form("ternary", Precision.TERNARY, 0.9, 0.17),
    Form("codebook95", Precision.CODEBOOK, 0.95, 0.13),
)
"""From the longest file to the shortest."""


def forms(*, trains: bool) -> tuple[Form, ...]:
    """The forms that a board may have which trains, or only answers."""
    return (CODEBOOK,) if trains else FORMS
