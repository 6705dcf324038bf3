"""The session and differences: when it takes the shorter way to a round's weights, and when it gives that up."""

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from edgefl.device.events import (
    Activate,
    Adopt,
    Effect,
    Event,
    Fetch,
    Fetched,
    NotRebuilt,
    OrderHeard,
    Rebuild,
    Tick,
    Train,
    Trained,
    TrainingFailed,
)
from edgefl.device.rounds import RETRY_AFTER
from edgefl.device.session import step
from edgefl.device.shortcut import shortest
from edgefl.device.state import Session
from edgefl.layout import Layout, Tensor
from edgefl.wire.blocks import file_ref
from edgefl.wire.files import Difference, FileRef
from edgefl.wire.releases import Manifest
from edgefl.wire.rounds import RoundOrder, Task

TASK = Task(1, 0.1, 0.1, 4, 1.0, 0)
OWN = file_ref("weights", b"weights of the version")
MANIFEST = Manifest(
    "m", 1, "p", "v", "portable", Layout((Tensor("w", (9,)),)), (3,), 2, 8, (file_ref("train", b"graph"), OWN), bytes(32), 0, 1
)


def weights(number: int) -> FileRef:
    """The weights of a round; those of round 0 are the version's."""
    return file_ref("weights", b"weights of round %04d, at length" % number) if number else OWN


def difference(base: int, number: int, length: int = 10) -> Difference:
    """From the weights of a round to those of another."""
    return Difference(weights(base).sha256, file_ref("difference", b"%d to %d".ljust(length) % (base, number)))


def order(number: int, *bases: int, task: Task | None = TASK) -> RoundOrder:
    """A round with differences from these rounds."""
    return RoundOrder("m", 1, "v", number, weights(number), task, 1, tuple(difference(base, number) for base in bases))


def run(state: Session, *events: Event, now: float = 0.0) -> tuple[Session, list[Effect]]:
    """Feed events and collect the effects, announcements left out."""
    effects: list[Effect] = []
    for event in events:
        state, new = step(state, event, now)
        effects += [effect for effect in new if type(effect).__name__ != "Announce"]
    return state, effects


def active() -> Session:
    """A session with an active version and nothing else."""
    return Session("cam-01", active=MANIFEST)


def test_weights_are_fetched_as_a_difference_and_trained_when_they_are_whole() -> None:
    """Fetch the difference, rebuild, adopt, train: nothing is trained before the weights themselves are there."""
    one = order(1, 0)
    state, effects = run(active(), OrderHeard(one))
    assert effects == [Fetch((one.differences[0].file,))]
    state, effects = run(state, Fetched(one.differences[0].file.sha256))
    assert effects == [Rebuild(one.differences[0], one.weights)]
    state, effects = run(state, Fetched(one.weights.sha256))
    assert effects == [Adopt(one), Train(MANIFEST, one)]
    assert state.work is not None
    assert state.work.difference is None


def test_a_device_that_missed_rounds_uses_what_it_holds() -> None:
    """Of all differences the one counts whose base is held, the newest weights or the version's; of two the shorter."""
    first = order(1, task=None)
    state, _ = run(active(), OrderHeard(first), Fetched(first.weights.sha256))
    assert shortest(state, order(4, 3, 2, 1)) == difference(1, 4)
    assert shortest(state, order(4, 3, 2)) is None
    both = structs.replace(order(4), differences=(difference(0, 4, length=20), difference(1, 4, length=19)))
    assert shortest(state, both) == both.differences[1]
    both = structs.replace(order(4), differences=(difference(0, 4, length=12), difference(1, 4, length=13)))
    assert shortest(state, both) == both.differences[0]


def test_weights_that_are_held_need_no_difference() -> None:
    """The first round's weights are the version's: they are asked for by name, and are there."""
    own = RoundOrder("m", 1, "v", 1, OWN, TASK, 1, (difference(3, 1),))
    _, effects = run(active(), OrderHeard(own))
    assert effects == [Fetch((OWN,))]


def test_a_difference_that_fails_is_given_up_for_the_whole_file() -> None:
    """Once per order: what was not rebuilt is fetched whole, and the difference is not tried again."""
    one = order(1, 0)
    state, _ = run(active(), OrderHeard(one), Fetched(one.differences[0].file.sha256))
    state, effects = run(state, NotRebuilt(one.weights.sha256))
    assert effects == [Fetch((one.weights,))]
    assert run(state, OrderHeard(one), Fetched(one.differences[0].file.sha256), NotRebuilt(one.weights.sha256)) == (state, [])
    _, effects = run(state, Fetched(one.weights.sha256))
    assert effects == [Adopt(one), Train(MANIFEST, one)]


def test_a_training_that_failed_needs_no_difference_again() -> None:
    """At the second attempt the weights are there: they are checked, not fetched by another way."""
    one = order(1, 0)
    state, _ = run(active(), OrderHeard(one), Fetched(one.differences[0].file.sha256), Fetched(one.weights.sha256))
    state, _ = run(state, TrainingFailed(1, "no"))
    _, effects = run(state, Tick(), now=RETRY_AFTER + 0.1)
    assert effects == [Fetch((one.weights,))]


def test_a_newer_order_brings_its_own_difference() -> None:
    """While a difference is on its way a newer order replaces it; what comes of the old one is no matter."""
    one, two = order(1, 0), order(2, 1, 0)
    state, effects = run(active(), OrderHeard(one), OrderHeard(two))
    assert effects[-1] == Fetch((difference(0, 2).file,))
    late = Fetched(one.differences[0].file.sha256), Fetched(one.weights.sha256), NotRebuilt(one.weights.sha256)
    assert run(state, *late) == (state, [])


def test_final_weights_come_as_a_difference_too() -> None:
    """An order without a task is adopted when its weights have been rebuilt."""
    last = order(3, 0, task=None)
    state, effects = run(active(), OrderHeard(last), Fetched(difference(0, 3).file.sha256), Fetched(last.weights.sha256))
    assert [type(effect) for effect in effects] == [Fetch, Rebuild, Adopt]
    assert (state.work, state.adopted) == (None, last.weights.sha256)


EVENTS = st.one_of(
    st.builds(lambda n, bases: OrderHeard(order(n, *bases)), st.integers(1, 5), st.lists(st.integers(0, 4), max_size=3)),
    st.builds(lambda a, b: Fetched(difference(a, b).file.sha256), st.integers(0, 4), st.integers(1, 5)),
    st.builds(lambda n: Fetched(weights(n).sha256), st.integers(0, 5)),
    st.builds(lambda n: NotRebuilt(weights(n).sha256), st.integers(1, 5)),
    st.builds(lambda n: Trained(n, b"x" * 32), st.integers(1, 5)),
    st.builds(lambda n: TrainingFailed(n, "no"), st.integers(1, 5)),
    st.just(Tick()),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(EVENTS, max_size=25))
def test_whatever_happens_only_what_is_held_is_built_upon(events: list[Event]) -> None:
    """A difference is applied to weights that were adopted or came with the version, and trained is what was adopted."""
    state, now = active(), 0.0
    adopted = {OWN.sha256}
    for event in events:
        now += 100.0
        state, effects = step(state, event, now)
        for effect in effects:
            match effect:
                case Adopt(one):
                    assert event == Fetched(one.weights.sha256)
                    adopted.add(one.weights.sha256)
                case Rebuild(way, target):
                    assert event == Fetched(way.file.sha256)
                    assert way.base in adopted
                    assert state.work is not None
                    assert state.work.order is not None
                    assert state.work.order.weights == target
                case Train(_, one):
                    assert one.weights.sha256 in adopted
                case Activate():
                    raise AssertionError("there is only one version")


def test_work_that_is_skipped_forgets_its_difference() -> None:
    """A device that does not take part in the next round fetches nothing more."""
    silent = order(2, 1, task=Task(1, 0.1, 0.1, 4, 1e-12, 0))
    state, effects = run(active(), OrderHeard(order(1, 0)), OrderHeard(silent))
    assert effects[-1] == Fetch(())
    assert state.work is None
