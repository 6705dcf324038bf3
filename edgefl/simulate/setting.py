"""Setting the scene: the data is loaded and dealt to the devices, the models are built and exported. Loads torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from edgefl.errors import ConfigError
from edgefl.examples import Examples
from edgefl.export.graphs import ExportedGraphs, export_graphs
from edgefl.export.models import ModelSource, load_factory
from edgefl.export.tensors import layout_of, vector_of
from edgefl.layout import Float32, Index, Layout, nested_index
from edgefl.recipe import Recipe
from edgefl.simulate.experiment import Dirichlet, Experiment, Group, Iid, Natural, Shards, located
from edgefl.simulate.jobs import SceneHead
from edgefl.simulate.scene import ENGINE, Scene, Structure
from edgefl.sources.clients import clients_of
from edgefl.sources.parse import open_source
from edgefl.sources.split import dirichlet_split, iid_split, natural_split, shard_split


@dataclass(frozen=True, slots=True)
class Family:
    """One model, its widths and its depths.

    Attributes:
        model: as in the experiment.
        layout: of the parent, which is the widest and deepest of its structures.
        weights: the parent's first ones, float32, in the layout's order.
        views: by structure, the whole one first: the parent coordinates that it has, int64; None for all of them.
    """

    model: str
    layout: Layout
    weights: Float32
    views: Mapping[int, Index | None]

    @property
    def widest(self) -> int:
        """The structure that is the parent itself."""
        return next(iter(self.views))


@dataclass(frozen=True, slots=True)
class Setting:
    """Everything that a simulation begins with.

    Attributes:
        scene: for the workers.
        families: in the order in which the experiment names them.
        holdout: examples to evaluate on.
        root: examples that the server keeps for the aggregator `root-set`; None without.
        labelled, unlabelled: that it keeps for the ensemble; None without.
    """

    scene: Scene
    families: tuple[Family, ...]
    holdout: Examples
    root: Examples | None
    labelled: Examples | None
    unlabelled: Examples | None


def set_scene(experiment: Experiment) -> Setting:
    """Load the data, cut it, export the models.

    Raises:
        ConfigError: a combination that is impossible, or data that is not there.
        DataError: the data is damaged, does not fit the models, or is too little for the split.
        ModelError: a model cannot be exported.
    """
    groups = experiment.structures
    sources = [_source(group.model, group.exits, experiment.recipe, experiment.personal) for group in groups]
    if len({source.classes for source in sources}) > 1:
        found = ", ".join(f"{source.name}: {source.classes}" for source in sources)
        raise ConfigError("models with different outputs in one experiment", found=found)
    holdout, examples = _shaped(experiment.holdout, sources), _shaped(experiment.data, sources)
    exports = [_exported(source, group.width, experiment.batch) for source, group in zip(sources, groups, strict=True)]
    rng = np.random.default_rng([experiment.seed, 1])
    root, labelled, unlabelled = _kept_back(experiment, len(examples), rng)
    dealt = np.setdiff1d(np.arange(len(examples)), np.concatenate([root, labelled, unlabelled]))
    devices = _dealt(experiment, examples, dealt, rng)
    bounds = np.cumsum([0, *map(len, devices)], dtype=np.int64)
    momentum = experiment.plan.correction > 0.0
    structures = tuple(
        Structure(
            SceneHead(made.layout, source.input_shape, source.classes, experiment.batch, source.recipe, momentum), made.graphs
        )
        for source, made in zip(sources, exports, strict=True)
    )
    kinds = assigned([group.share for group in groups], len(devices), experiment.seed)
    tested = np.zeros(len(devices), dtype=np.int64)
    if experiment.tested:
        devices = [rng.permutation(device) for device in devices]
        tested = np.array([min(len(device) - 1, round(experiment.tested * len(device))) for device in devices])
    scene = Scene(structures, examples.x, examples.y, np.concatenate(devices), bounds, kinds, np.maximum(0, tested))
    kept = [examples.take(rows) if len(rows) else None for rows in (root, labelled, unlabelled)]
    return Setting(scene, _families(experiment, sources), holdout, *kept)


def assigned(shares: Sequence[float], devices: int, seed: int) -> Index:
    """Which structure each device trains, int64, shape `(devices,)`: as many of each as its share says, who is drawn at random.

    Args:
        shares: positive; what they sum to does not matter.
        devices: how many.
        seed: of the draw.
    """
    wanted = np.asarray(shares) / np.sum(shares) * devices
    counts = np.floor(wanted).astype(np.int64)
    # The largest remainders get what is left; among equal ones the first.
    for kind in np.argsort(-(wanted - counts), kind="stable")[: devices - int(counts.sum())]:
        counts[kind] += 1
    kinds = np.repeat(np.arange(len(shares), dtype=np.int64), counts)
    return kinds if len(shares) == 1 else np.random.default_rng([seed, 6]).permutation(kinds)


def _families(experiment: Experiment, sources: Sequence[ModelSource]) -> tuple[Family, ...]:
    groups = experiment.structures
    members: dict[str, list[int]] = {}
    for kind, group in enumerate(groups):
        members.setdefault(group.model, []).append(kind)
    found = []
    for model, kinds in members.items():
        ordered = sorted(kinds, key=lambda kind: (-sources[kind].exits, -groups[kind].width, kind))
        source, whole = sources[ordered[0]], groups[ordered[0]]
        module = source.build(whole.width, seed=experiment.seed)
        parent = layout_of(module)
        if any(groups[kind].width > whole.width for kind in ordered):
            raise ConfigError(f"no group holds model {model!r} whole", expected="one with the largest width and the most exits")
        views = {kind: _view(sources[kind], groups[kind], parent) for kind in ordered}
        found.append(Family(model, parent, vector_of(module), views))
    return tuple(found)


def _view(source: ModelSource, group: Group, parent: Layout) -> Index | None:
    layout = layout_of(source.build(group.width))
    return None if layout == parent else nested_index(parent, layout)


@lru_cache(maxsize=32)
def _source(model: str, exits: int, recipe: Recipe, personal: tuple[str, ...]) -> ModelSource:
    source = load_factory(model, recipe, personal=personal)
    return source.shallower(exits) if exits else source


@lru_cache(maxsize=32)
def _exported(source: ModelSource, width: float, batch: int) -> ExportedGraphs:
    """A model's graphs; exporting takes seconds, and experiments of one series share them."""
    return export_graphs(source, width, ENGINE, batch)


def _shaped(text: str, sources: Sequence[ModelSource]) -> Examples:
    """Examples that fit every model, in the shape of the first."""
    examples = open_source(located(text)).load()
    for source in reversed(sources):
        examples = examples.shaped(source.input_shape, source.classes, source.recipe.loss)
    return examples


def _kept_back(experiment: Experiment, count: int, rng: np.random.Generator) -> tuple[Index, Index, Index]:
    """Rows of the server's own examples: of the root set, labelled, unlabelled; each ascending, no row twice."""
    ensemble = experiment.ensemble
    wanted = (experiment.root, ensemble.labelled, ensemble.unlabelled) if ensemble else (experiment.root, 0, 0)
    if sum(wanted) >= count:
        raise ConfigError("the server keeps all examples for itself", expected=f"fewer than {count}", found=str(sum(wanted)))
    order = rng.permutation(count)
    first, second, third = np.cumsum(wanted)
    return np.sort(order[:first]), np.sort(order[first:second]), np.sort(order[second:third])


def _dealt(experiment: Experiment, examples: Examples, rows: Index, rng: np.random.Generator) -> list[Index]:
    """The rows of each device."""
    seed, count = int(rng.integers(1 << 32)), experiment.devices
    if isinstance(experiment.split, Natural):
        parts = natural_split(clients_of(open_source(located(experiment.data)))[rows], count, seed=seed)
    elif count == 0:
        raise ConfigError("an experiment without devices", expected="devices from 1, or the split `natural`")
    else:
        labels = examples.y[rows] if examples.y.ndim == 1 else np.zeros(len(rows), dtype=np.int64)
        match experiment.split:
            case Iid():
                parts = iid_split(len(rows), count, seed=seed)
            case Dirichlet(alpha=alpha):
                parts = dirichlet_split(labels, count, alpha=alpha, seed=seed)
            case Shards(each=each):
                parts = shard_split(labels, count, each=each, seed=seed)
    return [rows[_limited(part, experiment.examples, rng)] for part in parts]


def _limited(part: Index, most: int, rng: np.random.Generator) -> Index:
    """At most so many of a device's rows, drawn at random; ascending."""
    return part if not most or len(part) <= most else np.sort(rng.permutation(part)[:most])
