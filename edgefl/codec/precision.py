"""How the weights in a file are written, and which of a model's tensors that concerns."""

from enum import StrEnum

from edgefl.layout import Tensor


class Precision(StrEnum):
    """How each weight is written; the position is the code in a file's header.

    The first three are for variants that train: a file of theirs differs little from that of the round before. The others are for
    weights at rest. They can be sent in rounds too, but then the whole file travels each time, for there are no differences
    between them. Of these int4 is precise enough to train from; what ternary and codebook take away is put back by retraining
    (`edgefl.retrain`), which a round's weights have not had.
    """

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"
    INT4 = "int4"
    TERNARY = "ternary"
    CODEBOOK = "codebook"


PRECISIONS = tuple(Precision)
TRAINABLE = (Precision.FP32, Precision.FP16, Precision.INT8)
"""Those of which the length of a file follows from the layout alone, the most precise first."""
ROUNDS = (*TRAINABLE, Precision.INT4)
"""Those in which rounds are sent, the most precise first."""

MIN_CHANNEL = 8


def is_quantised(tensor: Tensor) -> bool:
    """Whether int8 and less quantise this tensor: at least two axes, and at least `MIN_CHANNEL` values per output channel."""
    return len(tensor.shape) >= 2 and tensor.size // tensor.shape[0] >= MIN_CHANNEL


def in_rounds(precision: Precision) -> Precision:
    """How the rounds of a variant are sent that was pushed in this precision: what needs retraining has int4 from then on."""
    return precision if precision in ROUNDS else Precision.INT4
