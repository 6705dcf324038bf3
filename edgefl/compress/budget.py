"""Which variant a profile can hold: the most accurate by prediction, or the widest model that fits and its most precise weights.

Model. A candidate is a structure (a width, or a choice of channels) with weights of a precision. Its `footprint` is what the
board stores for it at most while it trains:

    graphs + weights                the installed variant, as pushed
    + weights                       of the current round
    + weights                       of the next round, which arrive beside the current ones, because the switch is atomic
    + 2 * 4 bytes per parameter     the residual in the outbox and the one it replaces, float32 at any precision; of those
                                    parameters that updates carry, so neither of frozen nor of personal ones

A board that only answers has no rounds and no updates (ADR 0026): its footprint is the first line alone.

While a new version is fetched and tried, its files come on top, and those of the version before the active one stay: a board can
go back. Its golden file counts as one of the graphs. Rounds are sent in the precision of the push, or in int4 where that one is
for weights at rest (`edgefl.codec.precision.in_rounds`, ADR 0025).

The board trains in float32 at any precision, so precision changes the file, not the arithmetic. With accuracies of all candidates
the planner (`edgefl.compress.planner`) takes the best that fits. Without them width comes first, because width
costs accuracy and the precision of weights hardly does: with one scale per channel int8 stays close to float32 without any
retraining (Krishnamoorthi 2018, https://arxiv.org/abs/1806.08342), and Deep Compression needs 8 bits in convolutions and 5 in
dense layers for no loss at all (Han et al., ICLR 2016, https://arxiv.org/abs/1510.00149). Taken from the width instead, a factor
of four halves every layer: two such steps cost HeteroFL 98.87 to 97.14 per cent on MNIST with two classes per device (its
reproduction in Flower, baselines/heterofl).

Rules: pure. Sizes of graphs are not known before they are exported, so the caller asks with what it knows (an estimate or 0),
exports, and asks again with the real sizes.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from edgefl.codec.memory import memory_bytes
from edgefl.codec.precision import in_rounds
from edgefl.codec.weights import TRAINABLE, Precision, weights_length
from edgefl.compress.cost import Work, answering_cost, training_cost
from edgefl.compress.evidence import Demand, Weigh
from edgefl.compress.forms import CODEBOOK, Form, forms
from edgefl.compress.planner import Cost
from edgefl.layout import Layout
from edgefl.recipe import PLAIN, Recipe

WIDTHS = (1.0, 0.75, 0.5, 0.375, 0.25, 0.1875, 0.125, 0.0625)
MEASURED = (*TRAINABLE, Precision.INT4)
"""Precisions that are offered where it is measured what they cost. Below, a round's weights would lose what only retraining gives
back; where nothing is measured, `TRAINABLE` ones hardly cost accuracy, whatever the model."""
ROUND_FILES = 2
"""Of this round, and of the next one."""
NO_WORK = Work(0, ())
NONE_RESTING: Mapping[tuple[str, str], "Resting"] = {}


@dataclass(frozen=True, slots=True)
class Structure:
    """A model's shape, at any precision.

    Attributes:
        name: unique for the model, for example `w0.5`; `d2w0.5` with the first two of more exits.
        width: of the hidden layers, in (0, 1]; 1 for a pruned model.
        layout: of its parameters.
        work: what training one example takes.
    """

    name: str
    width: float
    layout: Layout
    work: Work = NO_WORK


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to make a variant.

    Attributes:
        structure: the model's shape.
        precision: of the weights file.
        graph_bytes: of all ONNX graphs together.
        accuracy: in [0, 1], predicted; None without measurements.
        batch, recipe: of a training step.
        at_rest: length of the weights file as pushed, where it is known; otherwise it is what the layout allows at most.
        demand: memory and step time in the light of what has been run; None where nothing has.
        trains: whether its board does; otherwise it only answers.
        form: of weights that were retrained; None for others.
    """

    structure: Structure
    precision: Precision
    graph_bytes: int
    accuracy: float | None = None
    batch: int = 1
    recipe: Recipe = PLAIN
    at_rest: int | None = None
    demand: Demand | None = None
    trains: bool = True
    form: Form | None = None

    @property
    def name(self) -> str:
        """The variant's name, for example `w0.5-int8`."""
        return f"{self.structure.name}-{self.form.name if self.form else self.precision}"

    @property
    def layout(self) -> Layout:
        """Of the variant's parameters."""
        return self.structure.layout

    @property
    def width(self) -> float:
        """Of the hidden layers."""
        return self.structure.width

    @property
    def weight_bytes(self) -> int:
        """Length of the weights file as pushed, at most."""
        return weights_length(self.layout, self.precision) if self.at_rest is None else self.at_rest

    @property
    def round_bytes(self) -> int:
        """Length of the weights file of a round, at most."""
        return weights_length(self.layout, in_rounds(self.precision))

    @property
    def file_bytes(self) -> int:
        """Length of all files of the variant together, at most: what travels at a push."""
        return self.graph_bytes + self.weight_bytes

    @property
    def footprint(self) -> int:
        """Bytes that the board needs at most while it holds the variant and, if it does, trains it."""
        working = ROUND_FILES * self.round_bytes + memory_bytes(self.layout) if self.trains else 0
        return self.file_bytes + working

    @property
    def estimate(self) -> Cost:
        """What it takes of a board, by shapes alone."""
        if not self.trains:
            return answering_cost(self.footprint, self.layout, self.structure.work)
        return training_cost(self.footprint, self.layout, self.structure.work, self.batch, self.recipe)

    @property
    def cost(self) -> Cost:
        """What it takes of a board, as far as is known."""
        return self.estimate if self.demand is None else Cost(self.footprint, self.demand.memory, self.demand.step)


@dataclass(frozen=True, slots=True)
class Resting:
    """A structure's weights after retraining.

    Attributes:
        length: of the file.
        accuracy: in [0, 1], measured.
        form: in which they were written.
    """

    length: int
    accuracy: float
    form: Form = CODEBOOK


def candidates(
    structures: Iterable[Structure],
    graph_bytes: Mapping[str, int],
    *,
    predicted: Callable[[Structure, Precision], float | None] | None = None,
    batch: int = 1,
    recipe: Recipe = PLAIN,
    resting: Mapping[tuple[str, str], Resting] = NONE_RESTING,
    weigh: Weigh | None = None,
    trains: bool = True,
) -> tuple[Candidate, ...]:
    """All candidates in order of preference: the one that trains most parameters first, of equal ones the most precise first.

    Args:
        structures: names distinct.
        graph_bytes: by structure, of all graphs together; what is missing counts as 0.
        predicted: accuracy of a structure at a precision, None for one that cannot be used; without it nothing is known of
            accuracies, and the precisions are `TRAINABLE` ones.
        batch: rows of a training step.
        recipe: its optimiser.
        resting: retrained weights by names of structure and form; offered after the structure's own precisions, in the forms that
            the board may have.
        weigh: what candidates take in the light of what has been run; None where nothing has.
        trains: whether their board does; otherwise it only answers.
    """
    offered = []
    for one in sorted(structures, key=lambda one: (-_learning(one.layout), -one.layout.size)):
        for precision in MEASURED if predicted else TRAINABLE:
            accuracy = predicted(one, precision) if predicted else None
            if accuracy is not None or predicted is None:
                offered.append(Candidate(one, precision, graph_bytes.get(one.name, 0), accuracy, batch, recipe, trains=trains))
        rests = (resting[one.name, form.name] for form in forms(trains=trains) if (one.name, form.name) in resting)
        for rest in rests:
            size, form = graph_bytes.get(one.name, 0), rest.form
            written = Candidate(one, form.precision, size, rest.accuracy, batch, recipe, rest.length, trains=trains, form=form)
            offered.append(written)
    return tuple(replace(one, demand=weigh(one.name, one.estimate)) for one in offered) if weigh else tuple(offered)


def _learning(layout: Layout) -> int:
    """Parameters that training changes."""
    return sum(tensor.size for tensor in layout.tensors if tensor.role == "trained")
