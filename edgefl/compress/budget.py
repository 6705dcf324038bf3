"""Which variant a profile can hold: the widest model that fits, then the most precise weights at that width.

Model. A candidate is a width and a precision. Its `footprint` is what the board stores for it at most while it trains:

    graphs + weights                the installed variant
    + weights                       of the current round
    + weights                       of the next round, which arrive beside the current ones, because the switch is atomic
    + 2 * 4 bytes per parameter     the residual in the outbox and the one it replaces, float32 at any precision

While a new version is fetched and tried, its files come on top, and those of the version before the active one stay: a board can
go back. Its golden file counts as one of the graphs.

The board trains in float32 at any precision, so precision changes the file, not the arithmetic. Width comes first because width
costs accuracy and the precision of weights hardly does: with one scale per channel int8 stays close to float32 without any
retraining (Krishnamoorthi 2018, https://arxiv.org/abs/1806.08342), and Deep Compression needs 8 bits in convolutions and 5 in
dense layers for no loss at all (Han et al., ICLR 2016, https://arxiv.org/abs/1510.00149). Taken from the width instead, a factor
of four halves every layer: two such steps cost HeteroFL 98.87 to 97.14 per cent on MNIST with two classes per device (its
reproduction in Flower, baselines/heterofl).

Rules: pure. Sizes of graphs are not known before they are exported, so the caller asks with what it knows (an estimate or 0),
exports, and asks again with the real sizes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from edgefl.codec.weights import TRAINABLE, Precision, weights_length
from edgefl.errors import FitError
from edgefl.layout import Layout, Tensor

WIDTHS = (1.0, 0.75, 0.5, 0.375, 0.25, 0.1875, 0.125, 0.0625)
WEIGHT_FILES = 3
"""As pushed, of this round, of the next one."""
RESIDUAL_BYTES = 8
"""Per parameter: two residuals of float32."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to make a variant.

    Attributes:
        width: of the hidden layers, in (0, 1].
        precision: of the weights file.
        layout: of the variant's parameters.
        graph_bytes: of all ONNX graphs together.
    """

    width: float
    precision: Precision
    layout: Layout
    graph_bytes: int

    @property
    def name(self) -> str:
        """The variant's name, for example `w0.5-int8`."""
        return f"w{self.width:g}-{self.precision}"

    @property
    def weight_bytes(self) -> int:
        """Exact length of the weights file."""
        return weights_length(self.layout, self.precision)

    @property
    def file_bytes(self) -> int:
        """Length of all files of the variant together: what travels at a push."""
        return self.graph_bytes + self.weight_bytes

    @property
    def footprint(self) -> int:
        """Bytes that the board needs at most while it holds and trains the variant."""
        return self.graph_bytes + WEIGHT_FILES * self.weight_bytes + RESIDUAL_BYTES * self.layout.size


def candidates(layouts: Mapping[float, Layout], graph_bytes: Mapping[float, int]) -> tuple[Candidate, ...]:
    """All candidates in order of preference: widest first, at equal width the most precise first.

    Args:
        layouts: by width.
        graph_bytes: by width, of all graphs together; a width that is missing counts as 0.
    """
    return tuple(
        Candidate(width, precision, layouts[width], graph_bytes.get(width, 0))
        for width in sorted(layouts, reverse=True)
        for precision in TRAINABLE
    )


def choose(profile: str, budget: int, offered: Iterable[Candidate], others: Iterable[tuple[str, int]] = ()) -> Candidate:
    """The first candidate, in order of preference, whose footprint is at most the budget.

    Args:
        profile: name, for the error.
        budget: bytes.
        offered: in order of preference, at least one.
        others: name and budget of other profiles, to suggest one.

    Raises:
        FitError: none fits. The text says by how many bytes, which tensor dominates, and which profile would do.
    """
    ordered = tuple(offered)
    for candidate in ordered:
        if candidate.footprint <= budget:
            return candidate
    raise _does_not_fit(profile, budget, ordered, others)


def dominant(layout: Layout) -> Tensor:
    """The tensor with the most parameters."""
    return max(layout.tensors, key=lambda tensor: tensor.size)


def _does_not_fit(profile: str, budget: int, offered: Sequence[Candidate], others: Iterable[tuple[str, int]]) -> FitError:
    least = min(offered, key=lambda candidate: candidate.footprint)
    tensor = dominant(least.layout)
    share = 100 * tensor.size // least.layout.size
    enough = sorted((size, name) for name, size in others if size >= least.footprint)
    advice = (
        f"Use profile {enough[0][1]} ({enough[0][0]} bytes)"
        if enough
        else "No known profile is large enough: use a smaller model"
    )
    return FitError(
        f"the model does not fit profile {profile} even as {least.name}: it is {least.footprint - budget} bytes too large",
        expected=f"at most {budget} bytes",
        found=f"{least.footprint} bytes, of which tensor {tensor.name!r} {tensor.shape} has {share} % of the parameters",
        remedy=f"{advice}, or make {tensor.name!r} smaller",
    )
