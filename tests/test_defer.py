"""When versions may be fetched and installed: hours, battery, room, a round in progress, and what `device.toml` says of them."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefl.codec.precision import ROUNDS
from edgefl.codec.weights import PRECISIONS, encode_weights
from edgefl.compress.budget import Candidate, Structure
from edgefl.device import conditions, hands
from edgefl.device.conditions import working_bytes
from edgefl.device.config import DeviceConfig
from edgefl.device.defer import (
    BATTERY,
    DAY,
    DISK,
    HOURS,
    REASONS,
    TRAINING,
    Conditions,
    Policy,
    may_download,
    may_install,
    parse_hours,
    within,
)
from edgefl.device.power import battery_percent
from edgefl.errors import ConfigError
from edgefl.layout import Layout, Tensor
from edgefl.link.memory_broker import MemoryBroker
from edgefl.strict_toml import read_toml, write_toml
from edgefl.wire.blocks import file_ref
from edgefl.wire.rounds import Task
from toyagent import scripted
from toyclock import START, Clock
from toyoffice import Office

NOON, NIGHT = 12 * 60, 23 * 60 + 30


@given(st.integers(0, DAY - 1), st.integers(0, DAY - 1), st.integers(0, DAY - 1))
def test_hours_and_their_complement_share_the_day(begin: int, end: int, minute: int) -> None:
    """Each minute lies in exactly one of two windows that meet at both ends, over midnight or not."""
    if begin != end:
        assert within((begin, end), minute) != within((end, begin), minute)
    assert within((begin, end), begin)
    assert within(None, minute)
    assert within((begin, begin), minute)


@pytest.mark.parametrize(
    ("policy", "now", "download", "install"),
    [
        (Policy(), Conditions(), "", ""),
        (Policy(download=(22 * 60, 6 * 60)), Conditions(minute=NOON, missing=1), HOURS, ""),
        (Policy(download=(22 * 60, 6 * 60)), Conditions(minute=NIGHT, missing=1, free=9), "", ""),
        (Policy(download=(22 * 60, 6 * 60)), Conditions(minute=NOON), "", ""),
        (Policy(install=(60, 120)), Conditions(minute=NOON), "", HOURS),
        (Policy(battery=30), Conditions(battery=29, missing=1, free=9), BATTERY, BATTERY),
        (Policy(battery=30), Conditions(battery=30, missing=1, free=9), "", ""),
        (Policy(battery=30), Conditions(missing=1, free=9), "", ""),
        (Policy(), Conditions(missing=10, working=5, free=14), DISK, ""),
        (Policy(), Conditions(missing=10, working=5, free=15), "", ""),
        (Policy(), Conditions(training=True), "", TRAINING),
        (Policy(while_training=True), Conditions(training=True), "", ""),
        (Policy(patience=60.0), Conditions(training=True, waited=59.0), "", TRAINING),
        (Policy(patience=60.0), Conditions(training=True, waited=60.0), "", ""),
    ],
)
def test_what_holds_a_version_up(policy: Policy, now: Conditions, download: str, install: str) -> None:
    """Download and installation have answers of their own, and every reason can be explained."""
    assert (may_download(policy, now), may_install(policy, now)) == (download, install)
    assert {download, install} - {""} <= set(REASONS)


def supply(root: Path, name: str, **files: str) -> None:
    """A power supply of the kernel's."""
    (root / name).mkdir()
    for key, value in files.items():
        (root / name / key).write_text(value + "\n")


def test_only_a_discharging_battery_of_the_board_counts(tmp_path: Path) -> None:
    """Mains, a charging battery, that of a mouse and nonsense are no battery; of two the weaker one counts."""
    assert battery_percent(tmp_path / "none") is None
    supply(tmp_path, "AC", type="Mains", online="1")
    supply(tmp_path, "mouse", type="Battery", scope="Device", status="Discharging", capacity="3")
    supply(tmp_path, "odd", type="Battery", status="Discharging", capacity="many")
    supply(tmp_path, "BAT0", type="Battery", status="Charging", capacity="10")
    assert battery_percent(tmp_path) is None
    supply(tmp_path, "BAT1", type="Battery", status="Discharging", capacity="80")
    supply(tmp_path, "BAT2", type="Battery", status="Discharging", capacity="55")
    assert battery_percent(tmp_path) == 55


@pytest.fixture
def board(tmp_path, monkeypatch):
    """A board with a trainer in this process, at noon UTC."""
    monkeypatch.setattr(conditions, "local_minute", lambda wall: (NOON + int(wall - START) // 60) % DAY)
    with scripted(tmp_path, monkeypatch) as board:
        yield board


def owner(board, **keys):
    """The board's owner says something."""
    board.config = msgspec.structs.replace(board.config, **keys)
    return board


def deferred(board):
    """The codes with which the board has said that a version has to wait."""
    return [report.code for report in board.office.reports if report.step == "deferred"]


@pytest.mark.parametrize(("key", "fetches"), [("download_hours", False), ("install_hours", True)])
def test_a_version_waits_for_its_hours_and_says_so_once(board, key, fetches):
    """Nothing is fetched, or only fetched, until the hour has come; then it goes on by itself."""
    board.office.manifest()
    owner(board, **{key: "13:00-14:00"}).start().turns(600, seconds=4.0)
    assert deferred(board) == ["hours"]
    assert board.active() == 0
    assert bool(list((board.state / "blobs").iterdir())) == fetches
    board.run(board.active, turns=900, seconds=4.0)
    assert deferred(board) == ["hours"]


def test_a_download_pauses_when_its_hours_end_and_keeps_what_it_has(board):
    """Outside of its hours nothing is asked for; what had come is not fetched again."""
    board.office.serves = False
    board.office.manifest()
    owner(board, download_hours="11:00-12:30").start().turns(100, seconds=1.0)
    wants = []
    board.office._on_want = wants.append
    board.run(lambda: wants, turns=400, seconds=1.0)
    board.run(lambda: deferred(board), turns=900, seconds=4.0)
    wants.clear()
    board.turns(100, seconds=4.0)
    assert not wants
    assert list((board.state / "partial").iterdir())


def test_without_room_nothing_is_begun_and_training_goes_on(board, monkeypatch):
    """A disk that cannot take the version, its working files and the reserve defers it; the old version trains meanwhile."""
    board.office.manifest()
    board.start().run(board.active)
    taken = [hands.RESERVE + 1000]
    monkeypatch.setattr(conditions, "free_bytes", lambda _: taken[0])
    board.office.manifest(2, graphs={"train": bytes(3000)})
    board.run(lambda: deferred(board) == ["disk"])
    board.office.order(1)
    board.run(lambda: board.office.updates[1])
    assert board.active() == 1
    taken[0] = hands.RESERVE + 100_000
    board.run(lambda: board.active() == 2, turns=200, seconds=1.0)


@pytest.mark.parametrize("patience", [100.0, 0.001])
def test_a_round_in_progress_holds_an_installation_up_for_so_long(board, patience):
    """The version is fetched at once, and installed when the update has its receipt; or when the owner's patience ends."""
    board.office.receipts = "silent"
    board.office.manifest()
    owner(board, install_patience_hours=patience).start().run(board.active)
    board.office.order(1)
    board.run(lambda: board.office.updates[1])
    board.office.manifest(2)
    board.turns(400, seconds=1.0)
    assert deferred(board) == ["training"]
    assert board.active() == (1 if patience > 1 else 2)
    board.office.receipts = "store"
    board.run(lambda: board.active() == 2, turns=600, seconds=1.0)


def test_the_owners_word_is_checked(tmp_path):
    """A key of `device.toml` that cannot be meant is refused by name; what is left out allows everything."""
    good = {
        "id": "cam-01", "profile": "p", "engine": "portable", "threads": 1, "memory_mb": 64, "storage_kib": 64, "host": "h",
        "port": 1, "fleet": "0" * 64,
    }  # fmt: skip
    config = DeviceConfig(**good)
    assert config.policy == Policy()
    path = tmp_path / "device.toml"
    for key, value in (
        ("download_hours", "22-6"),
        ("install_hours", "24:00-06:00"),
        ("install_hours", "22:00-06:00 "),
        ("battery_floor", 101),
        ("install_while_training", "no"),
        ("install_patience_hours", -1.0),
    ):
        text = write_toml(config).replace(f"{key} = ", f"{key} = {msgspec.json.encode(value).decode()} # ")
        path.write_text(text)
        with pytest.raises(ConfigError, match=key):
            read_toml(path, DeviceConfig, ConfigError)
    said = msgspec.structs.replace(config, download_hours="22:00-06:30", battery_floor=20, install_patience_hours=0.5)
    path.write_text(write_toml(said))
    policy = read_toml(path, DeviceConfig, ConfigError).policy
    assert policy == Policy(download=(1320, 390), battery=20, patience=1800.0)
    assert parse_hours("") is None


def test_the_task_of_a_round_does_not_wait(board):
    """Hours hold versions up, not the weights of rounds."""
    board.office.manifest()
    board.start().run(board.active)
    board.lose()
    owner(board, download_hours="01:00-02:00", install_hours="01:00-02:00").start()
    board.office.order(1, task=Task(1, 0.1, 0.1, 4, 1.0, 0))
    board.run(lambda: board.office.updates[1])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_board_asks_for_the_room_that_the_planner_counts(precision):
    """What training takes beside the files is the footprint without these, whatever the precision and what is frozen."""
    layout = Layout((Tensor("a", (64, 100), role="frozen"), Tensor("b", (64, 100)), Tensor("c", (10, 64))))
    flat = np.random.default_rng(0).normal(0.0, 0.1, layout.size).astype(np.float32)
    if precision not in ROUNDS:
        flat[np.abs(flat) < 0.15] = 0.0  # as retraining leaves it; a push offers no codebook that is longer than int4
    weights = file_ref("weights", encode_weights(flat, layout, precision))
    manifest = Office(MemoryBroker(), Clock()).manifest(1, announce=False, layout=layout, files=(weights,))[0]
    planned = Candidate(Structure("w1", 1.0, layout), precision, graph_bytes=0)
    assert working_bytes(manifest) <= planned.footprint - planned.weight_bytes
