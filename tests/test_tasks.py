"""What a plan asks of devices: the same in the live server, on boards and in the simulation."""

import msgspec
import pytest

from edgefl.device.rounds import takes_part as live_takes_part
from edgefl.errors import UpdateError
from edgefl.participation import chance, takes_part
from edgefl.plan import Plan
from edgefl.rates import mutual_at
from edgefl.wire.blocks import file_ref
from edgefl.wire.rounds import RoundOrder, Task
from edgefl.wire.tasks import LONGEST_CONTEXT, keeps_history, scheme_of, task_of

UNUSUAL = Plan(
    epochs=3, learning_rate=0.3, sparsity=1.0, bits=2, fraction=0.4, seed=11, proximal=0.2, by_layer=True, sampled=True,
    rotated=True, context=True, price=0.7, correction=0.6, rate="loss", sampling="loss", ramp=4,
)  # fmt: skip


def test_every_wish_of_a_plan_reaches_the_task() -> None:
    """A field that plan and task share has the plan's value in the first round, which is not the default."""
    task = task_of(UNUSUAL, 1, 2.5)
    for name in Task.__struct_fields__:
        expected = {"loss": 2.5, "biased": True, "mutual": mutual_at(UNUSUAL, 1)}.get(name)
        assert getattr(task, name) == (getattr(UNUSUAL, name) if expected is None else expected), name


def test_the_scheme_is_the_tasks() -> None:
    """What a device codes with is what the plan says."""
    scheme = scheme_of(task_of(UNUSUAL, 1))
    for name in ("sparsity", "bits", "by_layer", "sampled", "rotated", "price", "correction"):
        assert getattr(scheme, name) == getattr(UNUSUAL, name), name
    with pytest.raises(UpdateError, match="dense"):
        scheme_of(task_of(msgspec.structs.replace(UNUSUAL, sparsity=0.5), 1))


@pytest.mark.parametrize(("staleness", "kept"), [(0, True), (LONGEST_CONTEXT, True), (LONGEST_CONTEXT + 1, False)])
def test_very_late_updates_are_coded_plainly(staleness: int, *, kept: bool) -> None:
    """A plan that would have the server keep too many weights asks for no context."""
    plan = Plan(staleness=staleness)
    assert keeps_history(plan) == task_of(plan, 1).context == kept


def test_a_board_draws_the_lot_that_the_rules_say() -> None:
    """The session's decision is `participation`'s, with and without bias, whether or not a device knows its loss."""
    for sampling in ("uniform", "loss"):
        task = task_of(Plan(fraction=0.3, sampling=sampling), 1, 1.0)
        for number in range(1, 60):
            order = RoundOrder("m", 2, "w1", number, file_ref("weights", b"w"), task, 1)
            for own in (0.0, 0.4, 2.0):
                likely = chance(0.3, own_loss=own, mean_loss=1.0) if sampling == "loss" else 0.3
                assert live_takes_part("cam-01", order, own) == takes_part("m", 2, number, "cam-01", likely)
