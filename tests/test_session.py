"""The device's session machine: what it promises whatever order things happen in."""

from dataclasses import replace

import msgspec
import pytest

from edgefl.device.events import (
    Activate,
    Adopt,
    Announce,
    Check,
    Checked,
    Connected,
    Damaged,
    Effect,
    Event,
    Fetch,
    Fetched,
    ManifestHeard,
    OrderHeard,
    Prepare,
    ReceiptHeard,
    Repaired,
    Send,
    Settle,
    StopTraining,
    Tick,
    Train,
    Trained,
    TrainingFailed,
    Tried,
    Try,
)
from edgefl.device.rounds import GIVE_UP_AFTER, RESEND_AFTER, RETRY_LIMIT, takes_part
from edgefl.device.session import step, wake_at
from edgefl.device.state import Session, Step, Work
from edgefl.layout import Layout, Tensor
from edgefl.wire.blocks import file_ref
from edgefl.wire.releases import Manifest
from edgefl.wire.rounds import Receipt, RoundOrder, Task

LAYOUT = Layout((Tensor("w", (2, 3)),))
TASK = Task(1, 0.1, 0.1, 4, 1.0, 0)


def manifest(version: int = 1, variant: str = "w1.0-fp32") -> Manifest:
    """A manifest with two files."""
    files = (file_ref("train", b"graph"), file_ref("weights", b"weights %d" % version))
    return Manifest("m", version, "p", variant, "portable", LAYOUT, (3,), 2, 8, files, bytes(32), 0, 1)


def order(number: int, version: int = 1, task: Task | None = TASK) -> RoundOrder:
    """A round order of the manifest's variant."""
    return RoundOrder("m", version, "w1.0-fp32", number, file_ref("weights", b"round %d" % number), task, 1)


def run(state: Session, *events: Event, now: float = 0.0) -> tuple[Session, list[Effect]]:
    """Feed events and collect the effects; nothing stands against a download or an installation, and every trial is passed."""
    effects: list[Effect] = []
    todo = list(events)
    while todo:
        state, new = step(state, todo.pop(0), now)
        effects += new
        todo[:0] = [
            Checked() if isinstance(one, Check) else Tried(one.manifest.version) for one in new if isinstance(one, Check | Try)
        ]
    return state, effects


def active(version: int = 1) -> Session:
    """A session with an activated version."""
    m = manifest(version)
    return run(Session("cam-01"), ManifestHeard(m), *[Fetched(f.sha256) for f in m.files])[0]


def training(number: int = 1) -> Session:
    """A session in the middle of a training."""
    o = order(number)
    return run(active(), OrderHeard(o), Fetched(o.weights.sha256))[0]


def kinds(effects: list[Effect]) -> list[type]:
    """The kinds of effects, announcements and questions left out."""
    return [type(e) for e in effects if not isinstance(e, Announce | Check)]


def test_version_is_activated_when_all_files_are_there_and_not_before() -> None:
    """A version becomes active exactly when its last file has been verified."""
    m = manifest()
    state, effects = run(Session("cam-01"), ManifestHeard(m), Fetched(m.files[0].sha256))
    assert kinds(effects) == [Fetch]
    assert state.active is None
    state, effects = run(state, Fetched(m.files[1].sha256))
    assert kinds(effects) == [Prepare, Try, Activate]
    assert state.active == m


def test_round_runs_from_order_to_receipt() -> None:
    """An order leads to fetch, adopt, train, send and settle, in this order."""
    o = order(3)
    state, effects = run(active(), OrderHeard(o), Fetched(o.weights.sha256), Trained(3, b"x" * 32))
    assert kinds(effects) == [Fetch, Adopt, Train, Send]
    state, effects = run(state, ReceiptHeard(Receipt("m", 1, 3, b"x" * 32, stored=True)))
    assert effects == [Settle(stored=True, reason="")]
    assert (state.work, state.done) == (None, (1, 3))


def test_order_heard_before_its_version_is_remembered() -> None:
    """An order for a version that is still being fetched starts work as soon as the version is active."""
    m, o = manifest(), order(1)
    state, _ = run(Session("cam-01"), OrderHeard(o), ManifestHeard(m), Fetched(m.files[0].sha256))
    _, effects = run(state, Fetched(m.files[1].sha256))
    assert kinds(effects) == [Prepare, Try, Activate, Fetch]


def test_update_is_sent_until_a_receipt_names_it() -> None:
    """Reconnection and silence both send the outbox again; a receipt for something else does not end it."""
    state, _ = run(training(), Trained(1, b"x" * 32))
    state, effects = run(state, Connected(), ReceiptHeard(Receipt("m", 1, 1, b"y" * 32, stored=True)), OrderHeard(order(2)))
    assert kinds(effects) == [Send]
    assert state.work is not None
    assert state.work.round == 1
    _, effects = run(state, Tick(), now=RESEND_AFTER + 0.1)
    assert kinds(effects) == [Send]


def test_newest_order_follows_after_the_receipt() -> None:
    """Rounds that passed while an update waited are skipped; the newest one is worked on."""
    state, _ = run(training(), Trained(1, b"x" * 32), OrderHeard(order(2)), OrderHeard(order(5)))
    state, effects = run(state, ReceiptHeard(Receipt("m", 1, 1, b"x" * 32, stored=True)))
    assert kinds(effects) == [Settle, Fetch]
    assert state.work is not None
    assert state.work.round == 5


def test_newer_order_supersedes_a_fetch_but_not_a_training() -> None:
    """Weights of a passed round are not fetched to their end; a training is."""
    state, _ = run(active(), OrderHeard(order(1)), OrderHeard(order(2)))
    assert state.work is not None
    assert state.work.round == 2
    state, effects = run(training(1), OrderHeard(order(2)))
    assert kinds(effects) == []
    assert state.work is not None
    assert state.work.round == 1


def test_new_version_abandons_the_old_ones_training() -> None:
    """Activation of a newer version stops a training of the older one."""
    m = manifest(2)
    state, effects = run(training(), ManifestHeard(m), *[Fetched(f.sha256) for f in m.files])
    assert kinds(effects) == [Fetch, StopTraining, Prepare, Try, Activate]
    assert state.work is None


def test_failing_training_is_retried_with_growing_pauses_and_then_given_up() -> None:
    """A round whose training fails again and again is left to others, and each failure is reported."""
    state, now, said = training(), 0.0, 0
    for attempt in range(GIVE_UP_AFTER):
        state, effects = run(state, TrainingFailed(1, "no memory"), now=now)
        said += sum(type(e).__name__ == "Announce" for e in effects)
        if attempt < GIVE_UP_AFTER - 1:
            assert state.work is not None
            assert state.work.retry_at is not None
            assert state.work.retry_at > now
            now = state.work.retry_at
            state, effects = run(state, Tick(), Fetched(order(1).weights.sha256), now=now)
            assert Train in kinds(effects)
    assert state.work is None
    assert state.done == (1, 1)
    assert said == GIVE_UP_AFTER


def test_failed_training_gives_way_to_a_newer_order() -> None:
    """A round that fails while a newer one stands open is left at once for the newer one."""
    state, effects = run(training(1), OrderHeard(order(2)), TrainingFailed(1, "no memory"))
    assert kinds(effects) == [Fetch]
    assert state.work is not None
    assert state.work.round == 2


def test_weights_are_adopted_once_however_often_the_training_fails() -> None:
    """A repeated training starts from weights that are adopted already: nothing is written to disk again."""
    state, effects = run(training(1), TrainingFailed(1, "no memory"))
    assert state.work is not None
    assert state.work.retry_at is not None
    _, effects = run(state, Tick(), Fetched(order(1).weights.sha256), now=state.work.retry_at)
    assert kinds(effects) == [Fetch, Train]


def test_pauses_between_repetitions_grow_to_a_limit() -> None:
    """An update without an answer is repeated ever less often, but never less than every five minutes."""
    state, now, pauses = run(training(), Trained(1, b"x" * 32))[0], 0.0, []
    for _ in range(12):
        at = wake_at(state)
        assert at is not None
        pauses.append(at - now)
        now = at
        state, effects = run(state, Tick(), now=now)
        assert kinds(effects) == [Send]
    assert pauses[0] == RESEND_AFTER
    assert pauses == sorted(pauses)
    assert max(pauses) == RETRY_LIMIT


def test_word_from_the_server_makes_the_pauses_short_again() -> None:
    """An order or a connection shows that somebody is there: the next repetition comes soon."""
    state, now = run(training(), Trained(1, b"x" * 32))[0], 0.0
    for _ in range(8):
        now = wake_at(state) or 0.0
        state, _ = run(state, Tick(), now=now)
    for event in (OrderHeard(order(4)), Connected()):
        assert wake_at(run(state, event, now=now)[0]) == now + RESEND_AFTER


def test_same_order_announced_anew_is_no_news() -> None:
    """An order whose expiry alone has changed does not begin the work again."""
    again = replace_expiry(order(1))
    state, effects = run(active(), OrderHeard(order(1)), OrderHeard(again))
    assert kinds(effects) == [Fetch]
    _, effects = run(state, Fetched(order(1).weights.sha256), OrderHeard(again), Trained(1, b"x" * 32), OrderHeard(again))
    assert kinds(effects) == [Adopt, Train, Send]


def replace_expiry(o: RoundOrder) -> RoundOrder:
    """The order, valid for longer."""
    return RoundOrder(o.model, o.version, o.variant, o.round, o.weights, o.task, o.expires + 100)


def test_repaired_version_keeps_the_update_that_waits() -> None:
    """A version that is installed again because a file of it was damaged does not abandon its own update."""
    waiting = Work(1, 4, Step.SENDING, None, sha256=b"x" * 32)
    m = manifest()
    state, effects = run(Session("cam-01", broken=m, work=waiting, done=(1, 3)), Connected(), Damaged(), OrderHeard(order(4)))
    assert kinds(effects) == [Send, Fetch]
    state, effects = run(state, *[Fetched(f.sha256) for f in m.files])
    assert kinds(effects) == [Repaired]
    assert state.work is not None
    assert state.work.step is Step.SENDING
    state, effects = run(state, ReceiptHeard(Receipt("m", 1, 4, b"x" * 32, stored=True)))
    assert kinds(effects) == [Settle], "and the round is not trained again"
    newer = manifest(2)
    state, _ = run(Session("cam-01", work=waiting), ManifestHeard(newer), *[Fetched(f.sha256) for f in newer.files])
    assert state.work is None, "but a newer version does abandon it"


def test_order_without_task_brings_the_final_weights_and_no_training() -> None:
    """When training has ended the device fetches and keeps the last weights, once."""
    final = replace_order(order(1), b"final")
    state, effects = run(active(), OrderHeard(final), Fetched(final.weights.sha256), OrderHeard(final))
    assert kinds(effects) == [Fetch, Adopt]
    assert state.work is None


def replace_order(o: RoundOrder, data: bytes) -> RoundOrder:
    """The order with other weights and without a task."""
    return RoundOrder(o.model, o.version, o.variant, o.round, file_ref("weights", data), None, o.expires)


def test_restart_with_an_outbox_sends_it_first() -> None:
    """A device that lost power with an update in its outbox sends it on the next connection, before anything else."""
    waiting = Work(1, 4, Step.SENDING, None, sha256=b"x" * 32)
    state = replace(active(), work=waiting)
    state, effects = run(state, Connected(), OrderHeard(order(5)))
    assert kinds(effects) == [Send]
    _, effects = run(state, ReceiptHeard(Receipt("m", 1, 4, b"x" * 32, stored=False, reason="too late")))
    assert kinds(effects) == [Settle, Fetch]


@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_fraction_decides_how_many_take_part(fraction: float) -> None:
    """About the fraction of the devices draws the lot, and the same device draws it in different rounds."""
    o = order(1, task=Task(1, 0.1, 0.1, 4, fraction, 0))
    drawn = {f"cam-{i}" for i in range(2000) if takes_part(f"cam-{i}", o)}
    assert abs(len(drawn) / 2000 - fraction) < 0.05
    other = order(2, task=o.task)
    assert drawn != {f"cam-{i}" for i in range(2000) if takes_part(f"cam-{i}", other)}


def test_round_without_this_device_is_passed_over() -> None:
    """Who does not draw the lot fetches nothing for the round, and no longer what it was fetching for the round before."""
    rare = order(2, task=Task(1, 0.1, 0.1, 4, 1e-9, 0))
    state, effects = run(active(), rare_event := OrderHeard(rare))
    assert (kinds(effects), state.work) == ([], None)
    state, effects = run(active(), OrderHeard(order(1)), rare_event)
    assert effects[-1] == Fetch(())
    assert state.work is None
    final = replace_order(rare, b"final")
    assert not takes_part("cam-01", final)
    assert kinds(run(state, OrderHeard(final))[1]) == [Fetch], "but everybody gets the final weights"


def test_a_round_that_is_opened_to_more_devices_is_taken_up() -> None:
    """Who was passed over trains when the same round comes again with a larger fraction, but not twice."""
    rare, wide = (order(2, task=Task(1, 0.1, 0.1, 4, fraction, 0)) for fraction in (1e-9, 1.0))
    state, _ = run(active(), OrderHeard(rare))
    state, effects = run(state, OrderHeard(wide), Fetched(wide.weights.sha256))
    assert kinds(effects) == [Fetch, Adopt, Train]
    state, _ = run(state, Trained(2, b"x" * 32), ReceiptHeard(Receipt("m", 1, 2, b"x" * 32, stored=True)))
    assert kinds(run(state, OrderHeard(rare), OrderHeard(wide))[1]) == []


def test_a_device_that_is_behind_takes_part_more_often() -> None:
    """With biased sampling the chance goes with the loss of the last training, which outlives the receipt but not the version."""
    biased = Task(1, 0.1, 0.1, 4, 0.2, 0, loss=1.0, biased=True)
    times = {loss: sum(takes_part("cam-01", order(n, task=biased), loss) for n in range(1, 1001)) for loss in (0.5, 1.0, 2.0)}
    assert [round(times[loss] / 100) for loss in (0.5, 1.0, 2.0)] == [1, 2, 4]
    plain = replace_task(biased, biased=False)
    assert all(
        takes_part("cam-01", order(n, task=plain), 2.0) == takes_part("cam-01", order(n, task=plain)) for n in range(1, 99)
    )
    state, _ = run(training(1), Trained(1, b"x" * 32, 0.75), ReceiptHeard(Receipt("m", 1, 1, b"x" * 32, stored=True)))
    assert state.loss == 0.75
    newer = manifest(2)
    assert run(state, ManifestHeard(newer), *[Fetched(f.sha256) for f in newer.files])[0].loss == 0.0


def replace_task(task: Task, **changes: object) -> Task:
    """The task with other values."""
    return msgspec.structs.replace(task, **changes)
