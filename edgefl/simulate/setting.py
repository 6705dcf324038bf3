"""Setting the scene: the data is loaded and dealt to the devices, the model is built and exported. Loads torch."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from edgefl.errors import ConfigError
from edgefl.examples import Examples
from edgefl.export.graphs import ExportedGraphs, export_graphs
from edgefl.export.models import ModelSource, load_factory
from edgefl.export.tensors import vector_of
from edgefl.layout import Float32, Index
from edgefl.recipe import Recipe
from edgefl.simulate.experiment import Dirichlet, Experiment, Iid, Natural, Shards, located
from edgefl.simulate.jobs import SceneHead
from edgefl.simulate.scene import ENGINE, Scene
from edgefl.sources.clients import clients_of
from edgefl.sources.parse import open_source
from edgefl.sources.split import dirichlet_split, iid_split, natural_split, shard_split


@dataclass(frozen=True, slots=True)
class Setting:
    """Everything that a simulation begins with.

    Attributes:
        scene: for the workers.
        weights: the first ones, float32, in the layout's order.
        holdout: examples to evaluate on, in the model's shape.
        root: examples that the server keeps for itself; None without.
    """

    scene: Scene
    weights: Float32
    holdout: Examples
    root: Examples | None


def set_scene(experiment: Experiment) -> Setting:
    """Load the data, cut it, export the model.

    Raises:
        ConfigError: a combination that is impossible, or data that is not there.
        DataError: the data is damaged, does not fit the model, or is too little for the split.
        ModelError: the model cannot be exported.
    """
    source, exported = _exported(experiment.model, experiment.width, experiment.batch, experiment.recipe)
    holdout = _shaped(experiment.holdout, source)
    examples = _shaped(experiment.data, source)
    rng = np.random.default_rng([experiment.seed, 1])
    kept_back = _kept_back(experiment, examples, rng)
    devices = _dealt(experiment, examples, np.setdiff1d(np.arange(len(examples)), kept_back), rng)
    bounds = np.cumsum([0, *map(len, devices)], dtype=np.int64)
    momentum = experiment.plan.correction > 0.0
    head = SceneHead(exported.layout, source.input_shape, source.classes, experiment.batch, source.recipe, momentum)
    scene = Scene(head, exported.graphs, examples.x, examples.y, np.concatenate(devices), bounds)
    weights = vector_of(source.build(experiment.width, seed=experiment.seed))
    return Setting(scene, weights, holdout, examples.take(kept_back) if len(kept_back) else None)


@lru_cache(maxsize=8)
def _exported(model: str, width: float, batch: int, recipe: Recipe) -> tuple[ModelSource, ExportedGraphs]:
    """A model's graphs; exporting takes seconds, and experiments of one series share them."""
    source = load_factory(model, recipe)
    return source, export_graphs(source, width, ENGINE, batch)


def _shaped(text: str, source: ModelSource) -> Examples:
    return open_source(located(text)).load().shaped(source.input_shape, source.classes, source.recipe.loss)


def _kept_back(experiment: Experiment, examples: Examples, rng: np.random.Generator) -> Index:
    """Rows of the server's own examples, ascending."""
    if experiment.root >= len(examples):
        raise ConfigError("the server keeps all examples for itself", expected=f"root below {len(examples)}")
    return np.sort(rng.permutation(len(examples))[: experiment.root])


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
