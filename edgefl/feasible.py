"""What can be seen of a plan to be impossible, or not to do what it says, before a training begins.

Rules: pure; the live command and the simulation ask the same. Values out of range are refused where a plan is read
(`edgefl.plan`).
"""

from collections.abc import Sequence

from edgefl.codec.marks import is_prunable
from edgefl.errors import ConfigError, UpdateError
from edgefl.layout import Layout
from edgefl.plan import Plan
from edgefl.wire.tasks import LONGEST_CONTEXT, scheme_of, task_of


def check_plan(plan: Plan, *, pruned: bool = False) -> None:
    """Refuse a plan whose parts contradict each other, or what it begins with.

    Args:
        plan: of the training.
        pruned: whether weights are gone from the parent that it begins with.

    Raises:
        ConfigError: they do.
    """
    asked = {f"aggregator {plan.aggregator}": plan.aggregator != "mean", "clip": plan.clip > 0.0, "exclude": plan.exclude > 0.0}
    if plan.jump_start and any(asked.values()):
        raise ConfigError(
            "a jump-start believes one device alone, whatever the plan says against hostile ones",
            expected="the aggregator mean, without clip and exclude",
            found=", ".join(name for name, is_asked in asked.items() if is_asked),
            remedy="Train without a jump-start, or without these",
        )
    if plan.pruning and plan.pruning.first >= plan.rounds:
        raise ConfigError(
            "the plan ends before anything is pruned",
            expected=f"a first pruning before the last round, {plan.rounds}",
            found=f"after round {plan.pruning.first}",
            remedy="Prune earlier (--pruning-first), or train for more rounds",
        )
    if (plan.pruning or pruned) and plan.staleness > LONGEST_CONTEXT:
        which = "of a pruned model" if pruned else "with pruning"
        raise ConfigError(
            f"{which}, late updates are read with the weights they were trained from, of which too many would be kept",
            expected=f"a staleness of at most {LONGEST_CONTEXT}",
            found=str(plan.staleness),
            remedy="Use a smaller staleness" if pruned else "Use a smaller staleness, or train without pruning",
        )
    try:
        scheme_of(task_of(plan, max(plan.warmup + 1, 2 if plan.jump_start else 1)))  # a round after warm-up and race
    except UpdateError as error:
        remedy = "Change the plan's sparsity, or how updates are coded"
        raise ConfigError(error.problem, expected=error.expected, found=error.found, remedy=remedy) from None


def check_fleet(plan: Plan, devices: int, parents: Sequence[Layout]) -> None:
    """Refuse a plan that this fleet and these models cannot follow.

    Args:
        plan: of the training.
        devices: that can take part.
        parents: layouts of the parents.

    Raises:
        ConfigError: there are fewer devices than the jump-start waits for, or nothing that can be pruned.
    """
    if plan.jump_start and plan.jump_start.devices > devices:
        raise ConfigError(
            "the jump-start waits for more devices than can take part",
            expected=f"at most {devices}",
            found=str(plan.jump_start.devices),
            remedy="Let it wait for fewer (--jump-start)",
        )
    if plan.pruning and not all(any(map(is_prunable, parent.tensors)) for parent in parents):
        raise ConfigError(
            "nothing of the model can be pruned",
            expected="a trained, shared tensor with eight values or more per output channel",
            remedy="Train without pruning",
        )
