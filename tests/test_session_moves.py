"""The session machine under every order of events: what it may never do, and the tables that it is drawn from."""

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefl.device import transitions
from edgefl.device.events import (
    Abandon,
    Activate,
    Check,
    Checked,
    Connected,
    Damaged,
    Effect,
    Event,
    Fetched,
    ManifestHeard,
    OrderHeard,
    Prepare,
    ReceiptHeard,
    Refuse,
    Revert,
    Send,
    StopTraining,
    StopTrial,
    Tick,
    Train,
    Trained,
    TrainingFailed,
    Tried,
    Try,
)
from edgefl.device.session import step
from edgefl.device.state import Failure, Install, Phase, Session, Step, Work
from edgefl.layout import Layout, Tensor
from edgefl.wire.blocks import file_ref
from edgefl.wire.releases import Health, Manifest
from edgefl.wire.rounds import Receipt, RoundOrder, Task

DOCS = Path(__file__).parent.parent / "docs" / "device-states.md"
LAYOUT = Layout((Tensor("w", (2, 3)),))
STARTS = 2
SECONDS = 30.0


def manifest(version: int) -> Manifest:
    """A version with two files."""
    files = (file_ref("train", b"graph %d" % version), file_ref("weights", b"weights %d" % version))
    health = Health(starts=STARTS, seconds=SECONDS)
    return Manifest("m", version, "p", "v", "portable", LAYOUT, (3,), 2, 8, files, bytes(32), 0, 1, health=health)


def order(number: int, version: int, *, final: bool = False, fraction: float = 1.0) -> RoundOrder:
    """A round of a version."""
    task = None if final else Task(1, 0.1, 0.1, 4, fraction, 0)
    return RoundOrder("m", version, "v", number, file_ref("weights", b"round %d" % number), task, 1)


ALPHABET: tuple[Event, ...] = (
    Connected(),
    Damaged(),
    Tick(),
    *[ManifestHeard(manifest(version), rollout) for version in (1, 2, 3) for rollout in (0, 1)],
    *[Fetched(ref.sha256) for version in (1, 2, 3) for ref in manifest(version).files],
    *[Checked(download, install) for download in ("", "hours", "disk") for install in ("", "training")],
    *[Tried(version, code) for version in (1, 2, 3) for code in ("", "trial-golden")],
    *[OrderHeard(order(number, version)) for version in (1, 2, 3) for number in (1, 2)],
    OrderHeard(order(2, 2, final=True)),
    OrderHeard(order(2, 2, fraction=1e-9)),
    *[Fetched(order(number, 1).weights.sha256) for number in (1, 2)],
    *[Trained(number, b"%032d" % number) for number in (1, 2)],
    *[TrainingFailed(number, "no", code) for number in (1, 2) for code in ("crash", "data")],
    *[ReceiptHeard(Receipt("m", 1, number, b"%032d" % number, stored=stored)) for number in (1, 2) for stored in (True, False)],
)
EVENTS = st.sampled_from(ALPHABET)

V1, V2 = manifest(1), manifest(2)
ACTIVE = Session("cam-01", active=V2, previous=V1)


def at(phase: Phase, base: Session = ACTIVE, **changes: object) -> Session:
    """A session with version 3 on its way."""
    m = manifest(3)
    missing = frozenset() if phase in (Phase.READY, Phase.TRIAL) else frozenset(ref.sha256 for ref in m.files)
    return replace(base, install=replace(Install(m, 0, phase, missing, 0.0, check_at=0.0), **changes))


def repairing(phase: Phase) -> Session:
    """A session whose active version is damaged."""
    missing = frozenset(ref.sha256 for ref in V2.files)
    install = Install(V2, 0, phase, missing, 0.0, check_at=0.0, repair=True)
    return replace(ACTIVE, active=None, broken=V2, install=install)


def working(place: Step, base: Session, **changes: object) -> Session:
    """A session with a round of version 2 at some step."""
    work = replace(Work(2, 1, place, order(1, 2), sha256=b"%032d" % 1 if place is Step.SENDING else b"", failures=2), **changes)
    return replace(base, work=work, heard=order(1, 2))


BEGINNINGS = (
    Session("cam-01"),
    ACTIVE,
    replace(ACTIVE, active=None, broken=V2),
    *[at(phase) for phase in Phase],
    at(Phase.READY, starts=STARTS),
    at(Phase.TRIAL, Session("cam-01")),
    *[repairing(phase) for phase in (Phase.WAITING, Phase.FETCHING)],
    *[working(place, base) for place in Step for base in (ACTIVE, at(Phase.WAITING), at(Phase.READY), at(Phase.TRIAL))],
    *[working(Step.TRAINING, at(phase)) for phase in (Phase.WAITING, Phase.FETCHING, Phase.READY)],
    *[working(place, repairing(Phase.FETCHING)) for place in (Step.FETCHING, Step.SENDING)],
    replace(repairing(Phase.FETCHING), heard=order(1, 2)),
    replace(at(Phase.FETCHING), failed=(Failure(1, 0, "trial-load"),)),
)
STARTS_OF_STORIES = st.sampled_from(BEGINNINGS)


def told(state: Session, events: list[Event]) -> list[tuple[Session, Event, Session, tuple[Effect, ...]]]:
    """The steps of a story, ten seconds apart."""
    steps = []
    for place, event in enumerate(events, start=1):
        after, effects = step(state, event, place * 10.0)
        steps.append((state, event, after, effects))
        state = after
    return steps


@settings(max_examples=400, deadline=None)
@given(STARTS_OF_STORIES, st.lists(EVENTS, max_size=30))
def test_no_order_of_events_breaks_the_rules(state: Session, events: list[Event]) -> None:
    """One training and one trial at a time, nothing is sent that was not trained, a version that serves is only ever replaced."""
    trainings = int(state.work is not None and state.work.step is Step.TRAINING)
    trials = int(state.trying > 0)
    for before, event, after, effects in told(state, events):
        if before.active:
            assert after.active is not None, "never neither"
            if after.active is not before.active:
                assert any(isinstance(e, Activate | Revert) for e in effects)
        if isinstance(event, Trained | TrainingFailed) and before.work and before.work.step is Step.TRAINING:
            trainings -= int(before.work.round == event.round)
        if isinstance(event, Tried) and before.trying:
            trials -= int(before.trying == event.version)
        for effect in effects:
            match effect:
                case Train(m, o):
                    trainings += 1
                    assert (m.version, m.variant) == (o.version, o.variant)
                case StopTraining():
                    trainings -= 1
                case Try():
                    trials += 1
                case StopTrial():
                    trials -= 1
                case Send():
                    assert after.work is not None
                    assert after.work.sha256
                case _:
                    pass
        assert 0 <= trainings <= 1
        assert 0 <= trials <= 1
        assert not any(isinstance(e, Check) for e in effects[:-1]), "a question comes last: its answer is an event of its own"


@settings(max_examples=300, deadline=None)
@given(STARTS_OF_STORIES, st.lists(EVENTS, max_size=30))
def test_every_state_is_on_disk_before_what_follows_from_it(state: Session, events: list[Event]) -> None:
    """A trial is preceded by its candidate and counter, and a word about an outcome by what keeps it."""
    for _, _, after, effects in told(state, events):
        names = [type(e).__name__ if not hasattr(e, "step") else e.step for e in effects]
        for kept, said in ((Prepare, "trial"), (Refuse, "refused"), (Revert, "reverted")):
            places = [place for place, e in enumerate(effects) if isinstance(e, kept)]
            if places and said in names:
                assert places[0] < names.index(said)
        if "Try" in names:
            assert names.index("Prepare") < names.index("Try")
            assert after.install is not None
            assert effects[names.index("Prepare")].starts == after.install.starts <= STARTS


class Disk:
    """What a kill leaves: the part of the session that effects have written, and nothing else."""

    def __init__(self) -> None:
        self.active: Manifest | None = None
        self.previous: Manifest | None = None
        self.candidate: Prepare | None = None
        self.failed: tuple[Failure, ...] = ()

    def write(self, effect: Effect, state: Session) -> None:
        """Do what the shell does."""
        match effect:
            case Prepare():
                self.candidate, self.failed = effect, state.failed
            case Activate(manifest):
                self.previous, self.active, self.candidate = self.active, manifest, None
            case Refuse():
                self.failed, self.candidate = state.failed, None
            case Revert():
                self.failed, self.active, self.previous = state.failed, self.previous, None
            case _:
                pass

    def session(self) -> Session:
        """What a start finds."""
        install = None
        if self.candidate:
            m, missing = self.candidate.manifest, frozenset(ref.sha256 for ref in self.candidate.manifest.files)
            install = Install(m, self.candidate.rollout, Phase.WAITING, missing, 0.0, starts=self.candidate.starts, check_at=0.0)
        return Session("cam-01", active=self.active, previous=self.previous, install=install, failed=self.failed)


def likely(state: Session, what: str, version: int, rollout: int) -> tuple[Event, ...]:
    """Events of one kind that mean something to a session."""
    match what:
        case "assign":
            return (ManifestHeard(manifest(version), rollout),)
        case "files":
            return tuple(Fetched(sha256) for sha256 in (state.install.missing if state.install else ()))
        case "round":
            at_work = state.active.version if state.active else 1
            return (OrderHeard(order(rollout + 1, at_work)), Fetched(order(rollout + 1, at_work).weights.sha256))
        case "crash":
            return (TrainingFailed(state.work.round if state.work else 1, "no", "crash"), Tick())
        case "pass" | "fail":
            return (Tried(state.trying, "" if what == "pass" else "trial-golden"),)
    return (Tick(),)


STORY = st.tuples(
    st.sampled_from(["assign", "files", "files", "pass", "fail", "round", "crash", "tick"]),
    st.integers(1, 3),
    st.integers(0, 1),
    st.one_of(st.just(0), st.integers(0, 6)),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(STORY, max_size=40))
def test_kills_between_effects_lose_neither_version_nor_failure(story: list[tuple[str, int, int, int]]) -> None:
    """Killed after any effect and started again: old or new, a failed version is not tried again, starts are bounded."""
    disk, state, now = Disk(), Session("cam-01"), 0.0
    refused: set[tuple[int, int]] = set()
    for what, version, rollout, kill in story:
        had, done = disk.active, 0
        events = list(likely(state, what, version, rollout))
        while events:
            now += 100.0
            state, effects = step(state, events.pop(0), now)
            for effect in effects:
                if isinstance(effect, Prepare):
                    assert (effect.manifest.version, effect.rollout) not in refused, "it has failed here"
                    assert effect.starts <= STARTS
                    refused = {one for one in refused if one[0] != effect.manifest.version}
                disk.write(effect, state)
                if isinstance(effect, Refuse | Revert) and effect.failure:
                    refused.add((effect.failure.version, effect.failure.rollout))
                if isinstance(effect, Check):
                    events.insert(0, Checked())
                done += 1
                if done == kill:
                    state, events = disk.session(), []
                    break
        assert disk.active is not None or had is None, "never neither"
        assert disk.active != disk.previous or disk.active is None


def test_a_version_on_its_way_stops_when_it_is_assigned_under_the_number_that_it_failed_under() -> None:
    """The same version is on its way under another number: back under the old number, the old failure counts."""
    state = Session("cam-01", failed=(Failure(1, 7, "trial-golden"),))
    state, _ = step(state, ManifestHeard(V1, 8), 1.0)
    assert state.install is not None
    state, effects = step(state, ManifestHeard(V1, 7), 2.0)
    assert state.install is None
    assert any(isinstance(effect, Abandon) for effect in effects)


def test_a_trial_that_kills_the_board_is_begun_so_often_and_no_oftener() -> None:
    """Each start is counted before it; after the last one the version has failed, and the board stays as it is."""
    disk = Disk()
    disk.active = V1
    for start in range(1, STARTS + 2):
        state = disk.session()
        for event in (ManifestHeard(V2, 4), Checked(), *[Fetched(f.sha256) for f in V2.files], Checked()):
            state, effects = step(state, event, 1.0)
            for effect in effects:
                disk.write(effect, state)
                assert not (isinstance(effect, Try) and start > STARTS)
    assert disk.failed == (Failure(2, 4, "trial-starts"),)
    assert (disk.active, disk.candidate) == (V1, None)
    assert step(disk.session(), ManifestHeard(V2, 4), 1.0)[0].install is None
    assert step(disk.session(), ManifestHeard(V2, 5), 1.0)[0].install is not None, "but it is under another rollout"


@pytest.mark.parametrize(
    ("moves", "state_of"),
    [(transitions.INSTALLING, transitions.state_of_install), (transitions.WORKING, transitions.state_of_work)],
)
def test_the_tables_list_all_moves_and_no_others(moves, state_of) -> None:
    """No order of events makes a move that is not listed, and every one that is listed is made by some order."""
    listed = {(move.source, move.target, event) for move in moves for event in move.events}
    made, states = set(), list(BEGINNINGS)
    for _ in range(2):
        following = {}
        for before in states:
            for event in ALPHABET:
                after, _ = step(before, event, 100.0)
                if state_of(before) != state_of(after):
                    made.add((state_of(before), state_of(after), type(event).__name__))
                following[after] = None
        states = list(following)
    assert made == listed


@pytest.mark.parametrize("moves", [transitions.INSTALLING, transitions.WORKING])
def test_the_drawings_in_the_documentation_are_those_of_the_tables(moves) -> None:
    """`docs/device-states.md` holds the diagram of each table, as it is drawn now."""
    assert f"```mermaid\n{transitions.drawing(moves)}```" in DOCS.read_text(), transitions.drawing(moves)


def test_a_rollback_is_not_held_against_the_version_that_it_leaves() -> None:
    """A lower version is tried without the comparison; a higher one with it."""
    for state, version, compared in ((ACTIVE, 1, False), (replace(ACTIVE, active=V1), 2, True)):
        m = manifest(version)
        ready = replace(state, install=Install(m, 0, Phase.READY, frozenset(), 0.0))
        _, effects = step(ready, Checked(), 0.0)
        (trial,) = (e for e in effects if isinstance(e, Try))
        assert (trial.against is not None) == compared


def test_health_travels_with_the_manifest() -> None:
    """A version that may be begun once is begun once."""
    m = msgspec.structs.replace(V2, health=Health(starts=1))
    again = replace(ACTIVE, active=V1, install=Install(m, 0, Phase.READY, frozenset(), 0.0, starts=1))
    state, effects = step(again, Checked(), 0.0)
    assert state.failed[-1].code == "trial-starts"
    assert isinstance(effects[0], Refuse)
