"""Clocks that are wrong: 1970 after a power cut, ten years ahead, and jumps in the middle of something."""

import hashlib
import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import toyboard
from edgefl.device.timekeeping import PATIENCE, wait_for_time
from edgefl.errors import FreezeError, SignatureError
from edgefl.store.clock import AGREES, LATEST, SOFTWARE, WRITE_EVERY, SteadyWall
from toyclock import START
from toyoffice import MODEL, PROFILE
from toytrainer import InlineTrainer, ScriptedEngine

YEAR = 365 * 86400.0
TODAY = 1_800_000_000.0


class World:
    """A board's clocks on strings."""

    def __init__(self, path, system=TODAY):
        self.path, self.system, self.passed, self.synced = path, system, 0.0, None
        self.wall = None

    def boot(self, system, lowest=SOFTWARE):
        """The power comes back; the clock says this."""
        self.system, self.passed = system, 0.0
        self.wall = SteadyWall(
            self.path,
            lowest=lowest,
            system=lambda: self.system,
            monotonic=lambda: self.passed,
            synced=lambda: self.synced,
        )
        return self.wall

    def go_on(self, seconds):
        """Time passes."""
        self.system += seconds
        self.passed += seconds
        return self.wall()


@pytest.fixture
def world(tmp_path):
    """A world whose clock file does not exist yet."""
    return World(tmp_path / "clock")


def test_time_never_goes_below_what_was_seen_before_the_power_cut(world):
    """After a boot in 1970 it is as late as it was, goes on from there, and follows the clock once that is set."""
    world.boot(TODAY)()
    world.go_on(2 * WRITE_EVERY)
    wall = world.boot(0.0)
    assert TODAY + WRITE_EVERY <= wall() <= TODAY + 2 * WRITE_EVERY
    before = wall()
    assert world.go_on(100.0) == pytest.approx(before + 100.0)
    world.system = TODAY + YEAR
    assert wall() == TODAY + YEAR


def test_a_first_boot_in_1970_starts_at_the_certificate_or_the_software(world):
    """Without any memory the device's certificate, or the age of the software, bounds the time; TLS is known not to work."""
    wall = world.boot(0.0, lowest=TODAY)
    assert wall() == TODAY
    assert wall.behind == TODAY
    world.path.unlink()
    assert world.boot(0.0)() == SOFTWARE
    world.boot(TODAY)
    assert world.wall.behind == 0.0


def test_a_clock_that_was_ahead_by_mistake_does_not_condemn_the_board(world):
    """Ten years ahead, seen and written down; a synchronised clock, or one that agrees with the server, is better evidence."""
    for evidence in ("synchronised", "signed"):
        world.path.unlink(missing_ok=True)
        world.boot(TODAY + 10 * YEAR)()
        world.wall.close()
        wall = world.boot(TODAY)
        assert wall() == pytest.approx(TODAY + 10 * YEAR, abs=1)
        if evidence == "signed":
            wall.at_least(TODAY - 3600.0)
        world.synced = evidence == "synchronised"
        assert wall() == TODAY
        wall.close()
        world.synced = None
        assert world.boot(0.0)() == pytest.approx(TODAY, abs=1)  # and it stays corrected


def test_signed_time_is_a_floor_that_no_clock_undermines(world):
    """Somebody who sets a synchronised clock back cannot make old words young again, also not by cutting the power."""
    world.boot(TODAY)
    world.wall.at_least(TODAY + 100.0)
    world.synced, world.system = True, TODAY - YEAR
    assert world.wall() == TODAY + 100.0
    world.wall.close()
    assert world.boot(TODAY - YEAR)() == pytest.approx(TODAY + 100.0, abs=1)


def test_signed_time_far_ahead_of_a_synchronised_clock_is_not_believed(world):
    """A server whose clock is wrong does not move a board whose clock is right; without a right one there is nothing better."""
    wall = world.boot(TODAY)
    world.synced = True
    wall.at_least(TODAY + YEAR)
    assert wall() == TODAY
    wall.at_least(TODAY + AGREES / 2)
    assert wall() == TODAY + AGREES / 2
    world.synced = None
    wall.at_least(TODAY + YEAR)
    assert wall() == TODAY + YEAR
    for nonsense in (float("nan"), float("inf"), -1.0, LATEST + 1.0):
        wall.at_least(nonsense)
        assert wall() == TODAY + YEAR


@pytest.mark.parametrize("content", [b"", b"nonsense", b"1e99 0", b"nan nan", b"-5 -5", b"1", b"\xff\xfe", b"1 2 3"])
def test_a_damaged_file_is_no_file(world, content):
    """What cannot have been written is not read."""
    world.path.write_bytes(content)
    assert world.boot(TODAY)() == TODAY


def test_the_card_is_spared_and_a_broken_one_is_survived(world, monkeypatch, caplog):
    """At most one write in ten minutes, whatever the clock does; a disk that fails is logged once."""
    writes = []
    from edgefl.store import clock

    real = clock.write_file
    monkeypatch.setattr(clock, "write_file", lambda path, data: (writes.append(world.passed), real(path, data)))
    world.boot(TODAY)
    for turn in range(7200):
        if turn % 7 == 0:
            world.system += YEAR if turn % 2 else -YEAR
        world.go_on(1.0)
    assert len(writes) <= 7200 / WRITE_EVERY + 1
    assert all(b - a >= WRITE_EVERY for a, b in itertools.pairwise(writes))
    monkeypatch.setattr(clock, "write_file", real)
    world.path.unlink()
    world.path.mkdir()
    for _ in range(5):
        world.go_on(2 * WRITE_EVERY)
    assert caplog.text.count("cannot be remembered") == 1


@given(st.lists(st.tuples(st.sampled_from(["pass", "jump", "signed", "boot"]), st.floats(0.0, 3e9)), max_size=25))
@settings(max_examples=40, deadline=None)
def test_signed_time_holds_after_any_history(tmp_path_factory, history):
    """Whatever clock and power do, it is never earlier than what a signature has said, and unsynchronised time never falls."""
    world = World(tmp_path_factory.mktemp("clock") / "clock")
    floor, last = SOFTWARE, 0.0
    world.boot(TODAY)
    for kind, number in history:
        if kind == "pass":
            world.go_on(number % 5000.0)
        elif kind == "jump":
            world.system = number
        elif kind == "signed":
            world.wall.at_least(number)
            floor, last = max(floor, number), 0.0  # it may have corrected what was seen
        else:
            world.wall.close()
            world.boot(number)
            last = min(last, world.wall())  # whole seconds are written
        now = world.wall()
        assert now >= floor - 1.0
        assert now >= last - 1.0
        last = now


# Waiting


def test_waiting_ends_when_the_clock_is_set(world):
    """The agent says that it waits, second by second, and goes on as soon as a time server has answered."""
    wall, told = world.boot(0.0, lowest=TODAY), []

    def sleep(seconds):
        world.go_on(seconds)
        if len(told) == 30:
            world.system = TODAY + 60.0

    assert wait_for_time(wall, told.append, lambda: False, clock=lambda: world.passed, sleep=sleep)
    assert told == ["waiting for the time"] * 30


def test_waiting_has_a_deadline_and_can_be_ended(world):
    """Without a time server the device comes up all the same after ten minutes; a signal ends the waiting at once."""
    wall = world.boot(0.0, lowest=TODAY)
    told = []
    assert not wait_for_time(wall, told.append, lambda: False, clock=lambda: world.passed, sleep=world.go_on)
    assert world.passed == pytest.approx(PATIENCE, abs=2.0)
    wall = world.boot(0.0, lowest=TODAY)
    assert not wait_for_time(wall, told.append, lambda: world.passed > 3.0, clock=lambda: world.passed, sleep=world.go_on)
    assert world.passed < 6.0


def test_a_clock_that_lags_a_little_is_not_waited_for(world):
    """A power cut of hours hurts no certificate: they begin a day before they are made."""
    assert wait_for_time(world.boot(TODAY - AGREES / 2, lowest=TODAY), pytest.fail, lambda: False)


# The device

TEN_YEARS = 10 * YEAR


@pytest.fixture
def board(tmp_path, monkeypatch):
    """A toy board with a clock of its own that a test can set."""
    monkeypatch.setattr("edgefl.device.hands.TrainerProcess", InlineTrainer)
    monkeypatch.setattr("edgefl.device.trainer.open_engine", ScriptedEngine)
    board = toyboard.Board(tmp_path / "board")
    clock = board.clock
    clock.ahead, clock.synced = 0.0, None
    (board.root / "state").mkdir()

    def steady():
        wall = SteadyWall(
            board.root / "state" / "clock",
            system=lambda: max(0.0, START + YEAR * 2 + clock.now + clock.ahead),
            monotonic=clock.monotonic,
            synced=lambda: clock.synced,
        )
        clock.wall = wall
        return wall

    board.steady = steady
    steady()
    board.belong(START + YEAR * 2)
    yield board
    if board.agent:
        board.lose()


BLOCKS = {"train": random.Random(0).randbytes(300_000), "eval": b"eval", "infer": b"infer"}
FAR = int(START + 4 * YEAR)


def test_a_boot_in_1970_expires_nothing_and_loses_nothing(board):
    """The version serves, orders are followed, and the update arrives; when the clock is set nothing changes."""
    board.office.manifest(created=int(START), expires=FAR)
    board.start().run(lambda: board.active() == 1)
    board.clock.wall.close()
    board.lose()
    board.clock.ahead = -1e12
    board.steady()
    assert board.clock.wall() > START + YEAR
    board.start()
    assert board.active() == 1
    board.office.order(1, expires=FAR)
    board.run(lambda: board.office.updates[1])
    board.clock.ahead = 0.0
    board.office.order(2, expires=FAR)
    board.run(lambda: board.office.updates[2])
    assert board.office.errors() == []


def test_ten_years_ahead_the_old_version_serves_and_new_words_are_refused_with_the_reason(board):
    """What is on disk does not expire; a new version is refused as expired, and the report says to check the clock."""
    board.office.manifest(expires=FAR)
    board.start().run(lambda: board.active() == 1)
    board.lose()
    board.clock.ahead = TEN_YEARS
    board.start()
    assert board.active() == 1
    board.office.manifest(version=2, expires=FAR)
    board.run(lambda: any("has expired" in error for error in board.office.errors()), turns=2000)
    assert any("Check this device's clock" in error for error in board.office.errors())
    assert board.active() == 1
    # The clock is set right; the retained words come again with the next connection.
    board.clock.ahead, board.clock.synced = 0.0, True
    board.link.drop()
    board.run(lambda: board.active() == 2)


def test_an_expired_word_is_a_freeze(board):
    """The refusal has its own name, so that a program can tell it from a forgery."""
    from edgefl.device.trust import believed_manifest

    _, payload = board.office.manifest(expires=FAR, announce=False)
    path = f"{MODEL}/{PROFILE}/1"
    with pytest.raises(FreezeError, match="has expired") as caught:
        believed_manifest(payload, path, hashlib.sha256(payload).digest(), board.config, START + TEN_YEARS)
    assert (caught.value.code, isinstance(caught.value, SignatureError)) == ("freeze", True)


@pytest.mark.parametrize("jump", [TEN_YEARS, -TEN_YEARS])
def test_a_jump_in_the_middle_of_a_download_loses_nothing(board, jump):
    """What was believed when it was heard is fetched to the end and activated; blocks that were there are not asked for again."""
    board.office.serves = False
    board.office.manifest(graphs=BLOCKS, expires=FAR)
    board.start().turns(20)
    board.office.serves = True
    fetched = board.link.traffic.received_bytes
    board.clock.ahead = jump
    board.run(lambda: board.active() == 1)
    assert board.link.traffic.received_bytes - fetched < 1.2 * len(BLOCKS["train"])
    assert board.office.errors() == []
