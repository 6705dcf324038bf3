"""The structures that a model is offered in: fewer exits, nested widths, and channels taken out where they matter least.

Model: a *cut* is a structure with what is needed to make it: a source that builds it, and its place in the parent. Nested widths
are the leading corner of every tensor; they need a factory that takes a width, and no examples. A model with exits is offered
with each number of its first ones, at each width: some of its tensors, and corners of them. Pruned structures exist for any
model whose channels the dependency graph can take apart. Uniform ones take the same share of every group; where held-out
examples tell how much each group matters (`edgefl.server.sensing`), searched ones take more where it costs less.

A shallower model is pruned as any model is. Its channels are ranked as those of the whole one, so that boards which keep the same
share hold the same channels of a layer, however many layers follow it there, and average them.

Where the operator allows it, each of them is offered with its first layers frozen as well (Yosinski et al., NIPS 2014,
https://arxiv.org/abs/1411.1792: the first layers are the most general): as accurate on arrival, cheaper to train, and slower to
learn, so it comes after all that train more.

Without such examples nothing says that one family is better: a model with widths is offered in widths, any other in uniform
shares by the norm of its channels.
"""

from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import dataclass, replace

import numpy as np

from edgefl.compress.axes import encode_axes
from edgefl.compress.budget import WIDTHS, Structure
from edgefl.compress.groups import Group, Shares
from edgefl.errors import ModelError
from edgefl.examples import Examples
from edgefl.export.measuring import work_of
from edgefl.export.models import ModelSource
from edgefl.export.pruning import Pruned, prunable_groups, prune, rank_channels
from edgefl.export.tensors import layout_of
from edgefl.layout import Float32, Index, Layout, nested_index

SHARES = (0.75, 0.5, 0.375, 0.25, 0.125)
"""Of the channels of every group, in uniform cuts."""
GUESS = 15 / 16
"""Of the smallest graphs of the same depth exported so far: what others take at least, until they are exported."""
FREEZES = 3
"""Ways to freeze the first layers of a structure."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A structure that can be made.

    Attributes:
        structure: name, width, layout and work.
        source: builds it at the structure's width.
        index: int64, the parent coordinate of each of its coordinates.
        axes: the rows that it keeps, as `edgefl.compress.axes` writes them; None for the leading corner.
    """

    structure: Structure
    source: ModelSource
    index: Index
    axes: bytes | None = None

    def slice(self, parent: Float32) -> Float32:
        """Its weights as a part of the parent's."""
        return parent[self.index]


def nested_cuts(source: ModelSource) -> tuple[Cut, ...]:
    """The full model, then each narrower width; then the same with fewer exits. Of several with the same layout the first.

    Depths of which nothing is left to train or to share are left out.

    Raises:
        ModelError: a narrower model is no part of the full one.
    """
    parent = layout_of(source.build())
    cuts: dict[Layout, Cut] = {}
    for exits in range(source.exits, 0, -1) or (0,):
        shallow = source.shallower(exits) if exits else source
        for width in WIDTHS if source.scalable else (1.0,):
            module = shallow.build(width)
            layout = layout_of(module)
            if layout not in cuts and layout.trained and any(tensor.shared for tensor in layout.tensors):
                name = _depth(source, exits) + f"w{width:g}"
                structure = Structure(name, width, layout, work_of(module, source.input_shape))
                cuts[layout] = Cut(structure, shallow, nested_index(parent, layout))
    return tuple(cuts.values())


def full_cuts(nested: Iterable[Cut]) -> tuple[Cut, ...]:
    """The whole model, then its depths at full width: what can be pruned."""
    return tuple(cut for cut in nested if cut.structure.width == 1.0)


def _depth(source: ModelSource, exits: int) -> str:
    """What a structure's name begins with: for example `d2` with the first two of more exits."""
    return "" if exits == source.exits else f"d{exits}"


def sizes_of_graphs(cuts: Mapping[str, Cut], known: Mapping[str, int]) -> Mapping[str, int]:
    """Bytes of all graphs by structure: what is known, for the others what they take at least. Weights are not in them.

    Args:
        cuts: by name.
        known: of those that have been exported.
    """
    least: dict[int, int] = {}
    for name, size in known.items():
        depth = max(1, cuts[name].source.exits)
        least[depth] = min(size, least.get(depth, size))

    def guess(cut: Cut) -> int:
        # Fewer exits have fewer layers, but not fewer than their share; more exits do not have fewer.
        exits = max(1, cut.source.exits)
        return int(GUESS * max((size * min(1.0, exits / depth) for depth, size in least.items()), default=0))

    return {name: known.get(name, guess(cut)) for name, cut in cuts.items()}


class Pruner:
    """Makes pruned structures of one model.

    Args:
        source: the model.
        parent: its weights, which say which channels matter.
        examples: to rank channels by what the loss loses as well, see `decide`; None ranks them by norm alone.

    Attributes:
        groups: that can be pruned.
        source: of the model that is pruned.
        place: int64, the parent coordinate of each of its coordinates.
        depth: what its structures' names begin with: empty for the whole model.
    """

    def __init__(self, source: ModelSource, parent: Float32, examples: Examples | None) -> None:
        self.groups: tuple[Group, ...] = prunable_groups(source)
        self.source = source
        self._layout = layout_of(source.build())
        self.place: Index = np.arange(self._layout.size, dtype=np.int64)
        self.depth = ""
        self._order = dict(rank_channels(source, parent, self.groups, None)) if self.groups else {}
        self._by_loss = rank_channels(source, parent, self.groups, examples) if self.groups and examples else {}

    def at(self, depth: Cut) -> "Pruner":
        """The same of a depth at full width: of its groups those that the whole model has too, and the ranking of these."""
        known = {group.name: (group.channels, group.parts) for group in self.groups}
        shallow = copy(self)
        shallow.groups = tuple(g for g in prunable_groups(depth.source) if known.get(g.name) == (g.channels, g.parts))
        shallow.source, shallow.place = depth.source, depth.index
        shallow.depth = _depth(self.source, depth.source.exits)
        return shallow

    def decide(self, accuracy: Callable[[Pruned], float]) -> None:
        """Rank the channels of each group by their norm or by the loss: whichever keeps more accuracy with half of them."""
        for group in self.groups:
            kept = [{group.name: group.chosen(order[group.name], 0.5)} for order in (self._order, self._by_loss)]
            by_norm, by_loss = (accuracy(prune(self.source, one)) for one in kept)
            if by_loss > by_norm:
                self._order[group.name] = self._by_loss[group.name]

    def pruned(self, shares: Shares) -> Pruned:
        """The model that keeps these shares of its groups. Raises ModelError where groups stand in each other's way."""
        kept = {g.name: g.chosen(self._order[g.name], shares[g.name]) for g in self.groups if shares.get(g.name, 1.0) < 1.0}
        return prune(self.source, kept)

    def cut(self, shares: Shares) -> Cut:
        """The structure that keeps these shares. Raises ModelError as above."""
        pruned = self.pruned(shares)
        work = work_of(pruned.source.build(), self.source.input_shape)
        structure = Structure(f"{self.depth}p{pruned.layout.size}", 1.0, pruned.layout, work)
        # At full width a depth has its tensors whole, so that the rows of these are rows of the parent's.
        axes = encode_axes(self._layout, pruned.layout, pruned.axes)
        return Cut(structure, pruned.source, self.place[pruned.index], axes)

    def uniform(self) -> tuple[Shares, ...]:
        """The same share of every group, the largest first."""
        return tuple({group.name: share for group in self.groups} for share in SHARES if self.groups)


def pruned_cuts(pruner: Pruner, wanted: Iterable[Shares], say: Callable[[str], None]) -> tuple[Cut, ...]:
    """The cuts that can be made of these; of several with as many parameters the first."""
    cuts: dict[str, Cut] = {}
    for shares in wanted:
        if all(share == 1.0 for share in shares.values()):
            continue
        try:
            cut = pruner.cut(shares)
        except ModelError as error:
            say(f"cannot prune to {_text(shares)}: {error}")
            continue
        cuts.setdefault(cut.structure.name, cut)
    return tuple(cuts.values())


def frozen_cuts(cut: Cut) -> tuple[Cut, ...]:
    """The same with its first layers frozen: they keep their values, and their residuals and gradients are saved.

    At most `FREEZES` ways, evenly spread; the last layer with parameters is always trained.
    """
    layers = list(dict.fromkeys(t.name.rpartition(".")[0] for t in cut.structure.layout.tensors if t.role == "trained"))
    most = len(layers) - 1
    counts = sorted({round(most * step / FREEZES) for step in range(1, FREEZES + 1)} - {0})
    return tuple(_frozen(cut, count, layers[:count]) for count in counts)


def _frozen(cut: Cut, count: int, layers: list[str]) -> Cut:
    source = replace(cut.source, freeze=(*cut.source.freeze, *(f"{layer}.*" for layer in layers)))
    module = source.build(cut.structure.width)
    name = f"{cut.structure.name}f{count}"
    structure = replace(cut.structure, name=name, layout=layout_of(module), work=work_of(module, source.input_shape))
    return replace(cut, structure=structure, source=source)


def _text(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{share:g} of {name}" for name, share in shares.items())
