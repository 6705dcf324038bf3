"""Words to the service manager, and what the watchdog is fed by."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import toyboard
from edgefl.device.notify import Notifier
from edgefl.device.progress import LINK_SECONDS, TRAINER_SECONDS, Seen, begin, look, status
from edgefl.device.training import TrainerProcess
from edgefl.device.watchdog import Watchdog
from edgefl.server.founding import create_fleet
from edgefl.server.provision import provision
from toytrainer import InlineTrainer, ScriptedEngine

WELL = Seen(connected=True, attempts=1, training=False, cpu=0.0, models=1)


class Manager:
    """A service manager's end of the socket."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.setblocking(False)

    def heard(self) -> list[str]:
        """What has been said since the last call."""
        words = []
        while True:
            try:
                words.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return words

    def environment(self, **more: str) -> dict[str, str]:
        """What it sets for a service."""
        return {"NOTIFY_SOCKET": self.address, **more}


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Manager:
    """A manager that listens in the file system, or in the abstract space."""
    return Manager(str(tmp_path / "notify") if request.param == "path" else f"@edgefl-test-{os.getpid()}-{id(tmp_path)}")


def test_words_arrive_and_children_do_not_inherit_the_socket(manager: Manager) -> None:
    """Each word is one datagram; a status is one bounded line; the variables leave the environment."""
    environment = manager.environment(WATCHDOG_USEC="8000000", WATCHDOG_PID=str(os.getpid()), PATH="/bin")
    notifier = Notifier(environment)
    assert (notifier.heard, notifier.patience, environment) == (True, 8.0, {"PATH": "/bin"})
    notifier.ready()
    notifier.status("two\nlines\nWATCHDOG=1 " + "x" * 1000)
    notifier.alive()
    notifier.stopping()
    ready, said, alive, stopping = manager.heard()
    assert (ready, alive, stopping) == ("READY=1", "WATCHDOG=1", "STOPPING=1")
    assert said.startswith("STATUS=two lines WATCHDOG=1 xxx")
    assert len(said) <= 210


@pytest.mark.parametrize(
    "environment",
    [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "@"}, {"NOTIFY_SOCKET": "vsock:2:1"}, {"NOTIFY_SOCKET": "/nonexistent/socket"}],
)
def test_where_nobody_listens_nothing_happens(environment: dict[str, str]) -> None:
    """No manager, or one that cannot be reached: saying something is no error."""
    notifier = Notifier(environment)
    notifier.ready()
    notifier.close()
    notifier.alive()
    assert notifier.patience is None


def test_a_manager_that_does_not_read_never_blocks_the_agent(tmp_path: Path) -> None:
    """Its full queue costs words, not time."""
    manager = Manager(str(tmp_path / "notify"))
    notifier = Notifier(manager.environment())
    began = time.monotonic()
    for _ in range(5000):
        notifier.alive()
    assert time.monotonic() - began < 60.0
    assert 0 < len(manager.heard()) < 5000


@pytest.mark.parametrize("more", [{"WATCHDOG_USEC": "5", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "0"}])
def test_a_watchdog_for_somebody_else_is_not_fed(tmp_path: Path, more: dict[str, str]) -> None:
    """The variables name another process, or no time."""
    assert Notifier(Manager(str(tmp_path / "notify")).environment(**more)).patience is None


# What progress is


def reasons(seen: Callable[[float], Seen], until: float, every: float = 1.0) -> list[tuple[float, str]]:
    """When and why there was no progress."""
    progress, found = begin(0.0), []
    for turn in range(int(until / every)):
        progress, reason = look(progress, seen(turn * every), turn * every)
        found += [(turn * every, reason)] if reason else []
    return found


def test_a_link_that_is_down_but_tried_is_progress_and_one_that_is_forgotten_is_not() -> None:
    """Attempts every minute are enough for ever; after the last one patience ends in time."""
    down = replace(WELL, connected=False)
    assert reasons(lambda now: replace(down, attempts=int(now / 60)), 7200) == []
    (first, why), *_ = reasons(lambda now: replace(down, attempts=min(3, int(now / 60))), 7200)
    assert 180 + LINK_SECONDS <= first <= 182 + LINK_SECONDS
    assert "no attempt" in why


def test_a_trainer_at_work_must_use_the_processor_and_an_idle_one_need_not() -> None:
    """Slow steps are progress, none are not; a new job begins with new patience."""
    busy = replace(WELL, training=True)
    assert reasons(lambda now: replace(busy, cpu=now // 600), 7200) == []
    (first, why), *_ = reasons(lambda _: replace(busy, cpu=3.0), 7200)
    assert TRAINER_SECONDS <= first <= TRAINER_SECONDS + 2
    assert "stood still" in why
    assert reasons(lambda now: replace(busy, cpu=3.0, training=now % 800 > 10), 7200) == []


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.booleans(), st.integers(0, 3), st.floats(0.0, 400.0)), max_size=30)
)
@settings(max_examples=100, deadline=None)
def test_whoever_is_connected_and_idle_is_always_well(turns: list[tuple[bool, int, bool, int, float]]) -> None:
    """After any history a connected, idle agent is fed at once, and memory never lies in the future."""
    progress, now = begin(0.0), 0.0
    for connected, attempts, training, cpu, passed in turns:
        now += passed
        progress, _ = look(progress, Seen(connected, attempts, training, float(cpu), 1), now)
        assert max(progress.tried_at, progress.worked_at) <= now
    _, reason = look(progress, WELL, now + 1e6)
    assert reason == ""


def test_the_status_fits_one_line() -> None:
    """For `systemctl status`."""
    assert status(WELL) == "connected, 1 model"
    assert status(Seen(connected=False, attempts=9, training=True, cpu=1.0, models=2)) == "no connection, 2 models, training"


# Feeding


def test_the_watchdog_is_fed_only_by_progress_and_again_after_it(tmp_path: Path) -> None:
    """Ready once, a few signs of life per patience, none while there is no progress, and the reason as status."""
    manager, now = Manager(str(tmp_path / "notify")), [0.0]
    watchdog = Watchdog(Notifier(manager.environment(WATCHDOG_USEC="60000000")), clock=lambda: now[0])

    def turns(seconds: int, seen: Seen) -> list[str]:
        for _ in range(seconds):
            watchdog.turn(seen)
            now[0] += 1.0
        return manager.heard()

    assert manager.heard() == []
    words = turns(120, WELL)
    assert words[:2] == ["READY=1", "STATUS=connected, 1 model"]
    assert words[2:] == ["WATCHDOG=1"] * 8
    down = replace(WELL, connected=False)
    turns(int(LINK_SECONDS) + 2, down)
    (said,) = turns(100, down)[-1:] or [""]
    assert said in ("", f"STATUS=no progress: no connection, and no attempt at one for {LINK_SECONDS + 1:.0f} seconds")
    assert turns(100, down) == []
    assert turns(1, replace(down, attempts=2)) == ["STATUS=no connection, 1 model", "WATCHDOG=1"]


def test_waiting_on_purpose_feeds_it_too(tmp_path: Path) -> None:
    """An agent that waits for the time is ready and alive, and says what it waits for."""
    manager = Manager(str(tmp_path / "notify"))
    watchdog = Watchdog(Notifier(manager.environment(WATCHDOG_USEC="60000000")))
    watchdog.waiting("waiting for the time")
    watchdog.stopping()
    assert manager.heard() == ["READY=1", "STATUS=waiting for the time", "WATCHDOG=1", "STOPPING=1"]


@pytest.mark.slow
def test_a_real_agent_says_ready_alive_and_stopping(tmp_path: Path) -> None:
    """`device run` without a broker: ready although offline, fed every quarter of the patience, and a good-bye at the end."""
    fleet = create_fleet(tmp_path / "fleet", name="farm", host="127.0.0.1", port=9)
    (made,) = provision(fleet, ["cam-01"], "rpi-zero-2w", tmp_path / "out", data="npz:/nonexistent.npz")
    manager = Manager(str(tmp_path / "notify"))
    environment = {**os.environ, **manager.environment(WATCHDOG_USEC="2000000")}
    environment.pop("STATE_DIRECTORY", None)
    command = [sys.executable, "-m", "edgefl", "device", "run", str(made.bundle)]
    words: list[str] = []
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 60.0
            while words.count("WATCHDOG=1") < 3:
                assert time.monotonic() < deadline, words
                words += manager.heard()
                time.sleep(0.05)
        finally:
            process.terminate()
            process.wait(120)
    words += manager.heard()
    assert words[:2] == ["READY=1", "STATUS=no connection, 0 models"]
    assert words[-1] == "STOPPING=1"
    assert float((made.bundle / "state" / "clock").read_text().split()[0]) == pytest.approx(time.time(), abs=60.0)


def test_what_an_agent_sees_is_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connection, models and the trainer's work, after every turn."""
    monkeypatch.setattr("edgefl.device.hands.TrainerProcess", InlineTrainer)
    monkeypatch.setattr("edgefl.device.trainer.open_engine", ScriptedEngine)
    monkeypatch.setattr(InlineTrainer, "patience", 5)
    monkeypatch.setattr(InlineTrainer, "cpu", 2.0, raising=False)
    board = toyboard.Board(tmp_path / "board")
    board.office.manifest()
    board.office.order(1)
    board.start()
    seen = [board.agent._seen()]

    def updated() -> bool:
        seen.append(board.agent._seen())
        return bool(board.office.updates[1])

    board.run(updated)
    assert (seen[0].connected, seen[0].models, seen[0].training) == (False, 0, False)
    assert Seen(connected=True, attempts=0, training=True, cpu=2.0, models=1) in seen
    assert (seen[-1].connected, seen[-1].training) == (True, False)
    board.lose()


def test_the_processor_time_of_a_working_trainer_rises() -> None:
    """A child that computes is seen to compute."""
    trainer = TrainerProcess(1, 512)
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    os.set_blocking(child.stdout.fileno(), False)
    trainer._child, trainer._job = child, SimpleNamespace(round=1)
    trainer._since, trainer._cpu = time.monotonic(), (0.0, time.monotonic())
    try:
        found = set()
        deadline = time.monotonic() + 120.0
        while len(found) < 3 and time.monotonic() < deadline:
            assert trainer.poll() is None
            found.add(trainer.cpu)
            time.sleep(0.05)
        assert len(found) == 3
    finally:
        trainer.cancel()
