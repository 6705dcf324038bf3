"""Where a model comes from: built-in architectures, or a factory that the operator names.

Model: a *factory* is a callable `factory(width) -> nn.Module`; `width` in (0, 1] scales the hidden layers, never input or
output. The module, or its class, carries `input_shape`. The parameters of a narrower model are the leading corner of the full
model's (HeteroFL, https://arxiv.org/abs/2010.01264), so that one fleet can train several widths of one model.

Exits: a factory with a parameter `exits`, as `factory(width, exits)`, builds the layers up to that exit; by default all layers.
Its module gives the logits of each exit, shape `(n, exits, classes)`; see `edgefl.export.exits`.

Buffers: BatchNorm's running statistics become tensors of the layout that are state; other floating-point buffers that a state
dict holds become frozen tensors; the rest (integers, buffers that are not persistent) are constants of the graphs.

Rules: a factory is code that the operator names on his own machine (`package.module:factory`), never code that travels. Every
way in which it can be wrong has its own words (`edgefl.export.soundness`). A model that changes other buffers while it computes
is refused: nobody would say how their values on different boards are to be averaged.
"""

from dataclasses import dataclass, replace
from functools import partial

from torch import nn

from edgefl.errors import ModelError
from edgefl.export.exits import check_beginning, with_exits
from edgefl.export.factory import Factory, named_factory
from edgefl.export.soundness import built, check_buffers, outputs_of, shape_of
from edgefl.export.tensors import layout_of, matches, set_training
from edgefl.layout import nested_index
from edgefl.recipe import PLAIN, Recipe


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model that can be built at any width.

    Attributes:
        name: as the operator gave it.
        factory: builds an untrained module for a width in (0, 1].
        input_shape: of one example.
        classes: number of outputs.
        scalable: whether widths below 1 are possible.
        recipe: loss and optimiser that it is trained with.
        freeze, personal: patterns (`fnmatch`) of the names of tensors that are not trained, and of those that stay on the device.
            BatchNorm layers whose running statistics are frozen compute as in evaluation.
        exits: how many it has; 0 for a model with one output and no exits.
    """

    name: str
    factory: Factory
    input_shape: tuple[int, ...]
    classes: int
    scalable: bool
    recipe: Recipe = PLAIN
    freeze: tuple[str, ...] = ()
    personal: tuple[str, ...] = ()
    exits: int = 0

    def shallower(self, exits: int) -> "ModelSource":
        """The model with its first exits only.

        Raises:
            ModelError: it does not have so many.
        """
        if not 1 <= exits <= self.exits:
            raise ModelError(f"model {self.name!r} has no {exits} exits", expected=f"1 to {self.exits}" if self.exits else "none")
        return self if exits == self.exits else replace(self, factory=partial(self.factory, exits=exits), exits=exits)

    def build(self, width: float = 1.0, *, seed: int = 0) -> nn.Module:
        """A freshly initialised module in training mode; equal seeds give equal weights.

        Raises:
            ModelError: width out of range or not supported, or the factory fails.
        """
        if not 0.0 < width <= 1.0:
            raise ModelError(f"model {self.name!r} cannot have this width", expected="above 0, at most 1", found=f"{width}")
        if width != 1.0 and not self.scalable:
            raise ModelError(
                f"the factory of model {self.name!r} takes no width",
                expected="width 1",
                found=f"{width}",
                remedy="Give the factory a width argument that scales its hidden layers, or use profiles that hold it whole",
            )
        module = built(self.name, self.factory, width, seed)
        _mark(module, self)
        return set_training(module, on=True)


def load_factory(name: str, recipe: Recipe = PLAIN, freeze: tuple[str, ...] = (), personal: tuple[str, ...] = ()) -> ModelSource:
    """The model of this name, built once at full width and run once on zeros to see that it works.

    Args:
        name: a built-in name or `package.module:factory`, looked up with the current directory on the path.
        recipe: loss and optimiser.
        freeze: patterns of the names of tensors that are not trained, see `ModelSource`.
        personal: patterns of the names of tensors that stay on the device.

    Raises:
        ModelError: no such module or attribute; not callable; raises; returns no module; no input shape; non-float32
            parameters; does not give what the loss takes; changes buffers; its narrower form is no part of the full one; a
            pattern that no tensor matches; or nothing left to train or to send.
    """
    found = named_factory(name)
    module = built(name, found.factory, 1.0, seed=0)
    shape = shape_of(name, module)
    exits, classes = outputs_of(name, module, shape, recipe, exits=found.exits)
    check_buffers(name, module, shape)
    factory = with_exits(found.factory, exits) if exits else found.factory
    source = ModelSource(name, factory, shape, classes, found.scalable, recipe, freeze, personal, exits)
    _check_marks(source)
    for depth in range(1, exits):
        shallow = source.shallower(depth)
        asked, given = (depth, classes), outputs_of(name, shallow.build(), shape, recipe, exits=True)
        if given != asked:
            raise ModelError(f"model {name!r} gives other exits than asked for", expected=f"{asked}", found=f"{given}")
        check_beginning(name, depth, source.build(), shallow.build(), shape)
    for depth in range(1, max(exits, 1) + 1) if found.scalable else ():
        _check_nesting(source.shallower(depth) if exits else source)
    return source


def _mark(module: nn.Module, source: ModelSource) -> None:
    """Write on a module which of its tensors are frozen or personal."""
    for name, value in module.named_parameters():
        if matches(name, source.freeze):
            value.requires_grad_(False)  # noqa: FBT003  torch's signature
    # Plain attributes: `layout_of` reads them wherever the module goes.
    module.edgefl_frozen = source.freeze  # type: ignore[assignment]  # torch types attributes as tensors or modules
    module.edgefl_personal = source.personal  # type: ignore[assignment]  # as above


def _check_marks(source: ModelSource) -> None:
    layout = layout_of(source.build())
    names = [tensor.name for tensor in layout.tensors]
    for pattern in (*source.freeze, *source.personal):
        if not any(matches(name, (pattern,)) for name in names):
            raise ModelError(
                f"no tensor of model {source.name!r} is called {pattern!r}", expected=f"a pattern of {', '.join(names[:8])} ..."
            )
    if not layout.trained:
        raise ModelError(f"all parameters of model {source.name!r} are frozen", remedy="Leave some to be trained")
    if not any(tensor.shared for tensor in layout.tensors):
        raise ModelError(f"all tensors of model {source.name!r} are personal", remedy="Leave some to be shared")


def _check_nesting(source: ModelSource) -> None:
    parent, half = layout_of(source.build()), source.build(0.5)
    outputs = outputs_of(source.name, half, source.input_shape, source.recipe, exits=source.exits > 0)
    if (outputs, shape_of(source.name, half)) != ((source.exits, source.classes), source.input_shape):
        raise ModelError(f"the width of model {source.name!r} changes its input or output", remedy="Scale the hidden layers only")
    child = layout_of(half)
    if len(child.tensors) != len(parent.tensors):
        raise ModelError(f"a narrower {source.name!r} has other tensors", remedy="Let the width change sizes, not the layers")
    nested_index(parent, child)
