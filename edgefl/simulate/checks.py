"""What can be seen of an experiment to be impossible, before any data is read."""

from edgefl.codec.weights import TRAINABLE
from edgefl.errors import ConfigError
from edgefl.feasible import check_plan
from edgefl.recipe import LESSONS
from edgefl.simulate.experiment import Experiment


def check(experiment: Experiment) -> None:
    """Refuse what can be seen to be impossible. Raises ConfigError."""
    if experiment.mode == "buffered" and experiment.speeds is None:
        raise ConfigError("buffered rounds need to know how long devices take", remedy="Add a table `speeds`")
    if experiment.mode == "buffered" and experiment.attack and experiment.attack.kind == "alie":
        raise ConfigError("conspirators need synchronous rounds", expected="mode `synchronous` with the attack `alie`")
    several = len(experiment.structures) > 1
    if several and experiment.attack and experiment.attack.kind == "alie":
        raise ConfigError("conspirators need to train the same structure", expected="one group with the attack `alie`")
    if len({(group.model, group.width, group.exits) for group in experiment.structures}) < len(experiment.structures):
        raise ConfigError("two groups with the same structure", remedy="Join them, with the sum of their shares")
    check_ensemble(experiment)
    check_plan(experiment.plan)
    if experiment.plan.pruning and experiment.precision not in TRAINABLE:
        found = experiment.precision.value
        raise ConfigError("weights that cannot say what is gone", expected=f"a precision of {', '.join(TRAINABLE)}", found=found)
    if experiment.plan.ramp and experiment.loss != "self-distillation":
        raise ConfigError("exits learn of each other with one loss alone", expected="self-distillation", found=experiment.loss)
    if experiment.plan.aggregator == "root-set" and not experiment.root:
        raise ConfigError("the aggregator `root-set` needs examples of the server's own", remedy="Set `root` in the experiment")


def check_ensemble(experiment: Experiment) -> None:
    """Refuse an ensemble that can be seen to be impossible. Raises ConfigError."""
    ensemble = experiment.ensemble
    if ensemble is None:
        return
    if len({group.model for group in experiment.structures}) < 2:
        raise ConfigError("an ensemble needs families", expected="groups with two models or more")
    if not experiment.recipe.labels:
        raise ConfigError("only families that classify make an ensemble", expected="cross-entropy", found=experiment.loss)
    if ensemble.every and experiment.loss not in LESSONS:
        # A lesson's soft label would be masked by what else is in its batch.
        raise ConfigError("lessons need another loss", expected=" or ".join(LESSONS), found=experiment.loss)
    if ensemble.every and not ensemble.labelled + ensemble.unlabelled:
        raise ConfigError("a distillation needs examples on the server", remedy="Set `ensemble.unlabelled`")
