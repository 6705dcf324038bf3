"""Structured pruning of any torch model: which channels can go, which of them matter, and the model without some of them.

Model: a *group* is a set of channels of several layers that can only go together (a convolution's outputs, its norm, the inputs
of whatever reads them), found along the graph of autograd by Torch-Pruning (Fang et al., DepGraph, CVPR 2023,
https://arxiv.org/abs/2301.12900), which only this module knows. A pruned model keeps some channels of each group; it is a
`ModelSource` of its own, which builds the parent and takes the other channels out, so that whatever exports and verifies a model
does so with a pruned one. Its tensors are sub-grids of the parent's, which `prune` proves: the positions of the parent's values
are written into a model's tensors, the channels are taken out, and what is left is the index map.

Channels are ranked by their L2 norm (Li et al., ICLR 2017, https://arxiv.org/abs/1608.08710), or with examples by what their loss
changes without them, to first order (Molchanov et al., CVPR 2019, https://arxiv.org/abs/1906.10771). Neither is better always.

Rules: a group that the library takes apart in a way which changes the model's outputs' shape, breaks it, or is no view of the
parent is left whole. Where normalisation groups or grouped convolutions divide the channels into equal parts, each part keeps the
same places.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import torch
import torch_pruning as tp
from torch import nn

from edgefl.compress.axes import Axes, axes_from_index
from edgefl.compress.groups import Group, Kept
from edgefl.errors import ModelError
from edgefl.examples import Examples
from edgefl.export.measuring import gradients_in_torch
from edgefl.export.models import ModelSource
from edgefl.export.tensors import layout_of, load_vector, outputs_of, set_training, tensors_of
from edgefl.layout import Float32, Index, Layout


@dataclass(frozen=True, slots=True)
class Pruned:
    """A model without some channels.

    Attributes:
        source: builds it.
        layout: of its parameters.
        index: int64, the parent coordinate of each of them.
        axes: the same by tensor and axis.
    """

    source: ModelSource
    layout: Layout
    index: Index
    axes: Axes


def prunable_groups(source: ModelSource) -> tuple[Group, ...]:
    """The groups that can be pruned, in the order in which the library finds them; empty where there are none."""
    module = source.build()
    try:
        found = [_group(name, group) for name, group in _Graph(module, source.input_shape).groups()]
    except Exception:  # noqa: BLE001  the library stumbles over models in many ways, and all of them mean the same
        return ()
    parent = layout_of(module)
    checked = [_checked(source, parent, group) for group in found if group.size > 1]
    return tuple(group for group in checked if group is not None)


def rank_channels(
    source: ModelSource, vector: Float32, groups: tuple[Group, ...], examples: Examples | None
) -> Mapping[str, tuple[int, ...]]:
    """The places in a part of each group, the most important first.

    Args:
        source: the parent.
        vector: its weights.
        groups: as `prunable_groups` gives them.
        examples: for the loss, shaped for the model; None takes the norm of the weights.
    """
    module = source.build()
    load_vector(module, vector)
    for value in module.parameters():
        value.requires_grad_(True)  # noqa: FBT003  torch's signature
    by_name = dict(_Graph(module, source.input_shape).groups())
    measure: tp.importance.Importance
    if examples is None:
        measure = tp.importance.GroupMagnitudeImportance(p=2)
    else:
        set_training(module, on=False)
        gradients_in_torch(module, examples, source.recipe)
        measure = tp.importance.GroupTaylorImportance()
    ranked: dict[str, tuple[int, ...]] = {}
    for group in groups:
        with _unheard():
            scores = measure(by_name[group.name]).detach().double().numpy()
        by_place = scores.reshape(group.parts, -1).sum(axis=0)
        ranked[group.name] = tuple(int(place) for place in np.argsort(-by_place, kind="stable"))
    return ranked


def prune(source: ModelSource, kept: Kept) -> Pruned:
    """The model with these channels only.

    Raises:
        ModelError: what is left is no view of the parent.
    """

    def built(width: float) -> nn.Module:
        module = source.factory(width)
        _take_out(module, source.input_shape, kept)
        return module

    parent = layout_of(source.build())
    left = tensors_of(_numbered(source, parent, kept))
    if any(name not in left for name in (t.name for t in parent.tensors)) or len(left) != len(parent.tensors):
        raise ModelError(f"a pruned {source.name!r} has other tensors")
    child = Layout(tuple(msgspec.structs.replace(t, shape=tuple(left[t.name].shape)) for t in parent.tensors))
    parts = [left[tensor.name].detach().reshape(-1).numpy() for tensor in parent.tensors]
    index = np.concatenate(parts).astype(np.int64)
    return Pruned(replace(source, factory=built, scalable=False), child, index, axes_from_index(parent, child, index))


def _numbered(source: ModelSource, parent: Layout, kept: Kept) -> nn.Module:
    """The pruned module, its tensors filled with the positions in the parent that their values come from."""
    module = source.factory(1.0)
    places = {tensor.name: place for tensor, place in parent.slices()}

    def number() -> None:
        module.double()  # exact up to 2**53
        with torch.no_grad():
            for name, value in tensors_of(module).items():
                value.copy_(torch.arange(places[name].start, places[name].stop, dtype=torch.float64).reshape(value.shape))

    _take_out(module, source.input_shape, kept, number)
    return module


def _take_out(module: nn.Module, shape: tuple[int, ...], kept: Kept, before: Callable[[], None] = lambda: None) -> None:
    """Remove the other channels from a module, in place; `before` is called when the graph is known."""
    graph = _Graph(module, shape)
    before()
    for name, channels in kept.items():
        graph.keep(name, channels)


class _Graph:
    """The library's view of a module."""

    def __init__(self, module: nn.Module, shape: tuple[int, ...]) -> None:
        self._graph = tp.DependencyGraph()
        self._module = module
        buffers = {name: value.clone() for name, value in module.named_buffers()}
        module.eval()  # one row per channel is enough then, and no running statistics change
        with _unheard(), torch.enable_grad(), torch.random.fork_rng(devices=[]):
            self._graph.build_dependency(module, example_inputs=[torch.zeros(2, *shape)], verbose=False)
        set_training(module, on=True)
        with torch.no_grad():
            for name, value in module.named_buffers():
                value.copy_(buffers[name])

    def groups(self) -> list[tuple[str, tp.Group]]:
        """Name and group of everything that the library would prune, the model's own outputs among them."""
        paths = {layer: path for path, layer in self._module.named_modules()}
        with _unheard():
            return [(paths[group[0].dep.target.module], group) for group in self._graph.get_all_groups()]

    def keep(self, name: str, channels: tuple[int, ...]) -> None:
        """Take all other channels of the group of this layer out. Raises ModelError."""
        try:
            layer = self._module.get_submodule(name)
        except AttributeError:
            raise ModelError(f"the model has no layer {name!r}") from None
        pruner = self._graph.get_pruner_of_module(layer)
        out = sorted(set(range(pruner.get_out_channels(layer))) - set(channels))
        if out:
            with _unheard():
                self._graph.get_pruning_group(layer, pruner.prune_out_channels, out).prune()


def _group(name: str, group: tp.Group) -> Group:
    parts = 1
    for dep, _ in group:
        layer = dep.target.module
        divided = getattr(layer, "num_groups", None) if isinstance(layer, nn.GroupNorm) else getattr(layer, "groups", 1)
        depthwise = divided == getattr(layer, "out_channels", None)
        parts = math.lcm(parts, 1 if depthwise or not isinstance(divided, int) else divided)
    channels = _channels(group)
    return Group(name, channels, parts if channels % parts == 0 else channels)


def _channels(group: tp.Group) -> int:
    return len(group[0].idxs)


def _checked(source: ModelSource, parent: Layout, group: Group) -> Group | None:
    """The group and what gets shorter without it, if the model without half of it is a view with outputs of the same shape."""
    kept = {group.name: group.chosen(tuple(range(group.size)), 0.5)}
    try:
        child = prune(source, kept).layout
        module = _numbered(source, parent, kept).eval()
        with torch.no_grad():
            outputs = outputs_of(module, torch.zeros(2, *source.input_shape, dtype=torch.float64))
        if tuple(outputs.shape) != (2, source.classes):
            return None
        return group.seen(parent, child, group.channels - len(kept[group.name]))
    except Exception:  # noqa: BLE001  as in `prunable_groups`
        return None


@contextmanager
def _unheard() -> Iterator[None]:
    """The library warns of what is checked afterwards anyway."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
