"""`edgefl rollout`, `edgefl rollback`, `edgefl devices tag`: every order on the command line, and what it shows."""

import io
import json
import re
import shutil
import threading
import time

import click
import pytest

import make_rollouts as maker
import toyfleet as toy
from edgefl.cli.main import COMMANDS, run
from edgefl.server.founding import create_fleet
from edgefl.server.rollout_events import Heard, Reported
from edgefl.server.rollouts import advance
from edgefl.store.database import open_database, transaction
from edgefl.store.presence import PresenceBook
from edgefl.store.releases import release
from edgefl.store.rollouts import newest_rollout
from edgefl.wire.presence import State
from toyclock import START

NAMES = [f"d{i:02}" for i in range(10)]


@pytest.fixture(scope="module")
def founded(tmp_path_factory):
    """A new fleet directory, to be copied."""
    return create_fleet(tmp_path_factory.mktemp("new") / "fleet", name="test").path


@pytest.fixture
def fleet(founded, tmp_path, monkeypatch):
    """A fleet directory with ten devices, version 1 as the release and version 2 held; commands find it."""
    fleet = toy.ToyFleet(shutil.copytree(founded, tmp_path / "fleet"))
    fleet.provision(**dict.fromkeys(NAMES, "big"))
    fleet.push(hold=True)
    with transaction(fleet.database):
        release(fleet.database, "toy", 1, START)
    fleet.push(seed=2, hold=True)
    monkeypatch.setenv("EDGEFL_FLEET", str(fleet.root))
    return fleet


def rollout(*words):
    """`edgefl rollout ...`; its exit code."""
    return run(["rollout", *words])


def status(capsys, *words):
    """`edgefl rollout status --json`."""
    capsys.readouterr()
    assert rollout("status", "--json", *words) == 0
    return json.loads(capsys.readouterr().out)


def hear(fleet, names, step="activated", **more):
    """The server takes up reports."""
    with transaction(fleet.database):
        record = newest_rollout(fleet.database, "toy")
        advance(fleet.database, record, (Heard(tuple(Reported(name, step, **more) for name in names)),), time.time())


def told(fleet):
    """The devices that were told."""
    return [name for name, device in newest_rollout(fleet.database, "toy").state.devices.items() if device.step != "waiting"]


def test_start_says_who_was_told(fleet, capsys):
    """The newest version goes out by default, its canary is named, and the defaults are those of the documentation."""
    assert rollout("start", "toy") == 0
    out = capsys.readouterr().out
    assert out.startswith("rollout 1 of toy@2 to all devices: running\n")
    assert f"told 1 devices ({told(fleet)[0]})" in out
    (one,) = status(capsys)
    assert one["stages"] == ["1", "5%", "25%", "100%"]
    assert (one["state"], one["members"], one["told"], one["needed"], one["previous"]) == ("running", 10, 1, 1, 1)


@pytest.mark.usefixtures("fleet")
def test_rules_come_from_the_options(capsys):
    """Every option of `start` ends in the rollout's rules."""
    words = "--stages 2,50%,100% --success 75% --abort 20%/4 --at-limit abort --approve --timeout 90"
    assert rollout("start", "toy@2", *words.split()) == 0
    (one,) = status(capsys)
    assert one["rules"] == {
        "stages": [{"devices": 2, "share": 0.0}, {"devices": 0, "share": 0.5}, {"devices": 0, "share": 1.0}],
        "success": 0.75, "abort": 0.2, "minimum": 4, "at_limit": "abort", "approve": True, "timeout": 90.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("toy --stages 5%", "100% as the last one"),
        ("toy --stages 9,3,100%", "larger than the one before"),
        ("toy --stages many", "'many'"),
        ("toy --success 0%", "'0%'"),
        ("toy --abort 3", "'3'"),
        ("toy --timeout -1", "timeout"),
        ("toy --timeout nan", "timeout"),
        ("toy@x", "toy@x"),
        ("toy@9", "toy@9"),
        ("other", "edgefl push other"),
        ("toy@1", "push with --hold"),
        ("toy --device ghost", "ghost"),
        ("toy --tag none", "tag none"),
        ("toy --profile huge", "profile huge"),
    ],
)
def test_impossible_starts_are_refused(fleet, capsys, words, said):
    """What cannot be meant is an error with exit code 2 that names it, and no rollout is entered."""
    assert rollout("start", *words.split()) == 2
    assert said.lower() in capsys.readouterr().err.lower()
    assert fleet.rows("SELECT COUNT(*) FROM rollouts") == [(0,)]


@pytest.mark.usefixtures("fleet")
def test_orders_in_their_order(capsys):
    """Pause, resume, promote and abort do what they say and show what follows; one that is impossible says what is possible."""
    rollout("start", "toy")
    assert rollout("resume", "toy") == 2
    assert "one of abort, pause, promote, rollback, supersede" in capsys.readouterr().err
    assert rollout("pause", "toy") == 0
    assert "paused: pause ordered" in capsys.readouterr().out
    assert rollout("promote", "toy") == 2
    assert rollout("resume", "toy") == 0
    capsys.readouterr()
    assert rollout("promote", "toy", "--json") == 0
    assert json.loads(capsys.readouterr().out)["told"] == 3
    assert rollout("abort", "toy") == 0
    assert "aborted" in capsys.readouterr().out
    assert rollout("abort", "toy") == 2
    assert "edgefl rollback toy" in capsys.readouterr().err


@pytest.mark.usefixtures("fleet")
def test_an_order_names_one_of_several_rollouts(capsys):
    """With two open, an order without a number is refused and names both; with one it goes where it is meant to."""
    assert rollout("start", "toy@2", "--device", "d01") == 0
    assert rollout("start", "toy@2", "--device", "d02") == 0
    assert rollout("abort", "toy") == 2
    assert "1 (toy@2 to device d01) or 2 (toy@2 to device d02)" in capsys.readouterr().err
    assert rollout("abort", "toy", "--rollout", "1") == 0
    assert rollout("abort", "toy", "--rollout", "1") == 2
    assert rollout("pause", "toy") == 0
    assert [(one["id"], one["state"]) for one in status(capsys, "--all")] == [(1, "aborted"), (2, "paused")]


@pytest.mark.usefixtures("fleet")
def test_orders_need_a_rollout(capsys):
    """Without a rollout each order and the status of the model say so."""
    for words in (["pause", "toy"], ["status", "toy"], ["abort", "ghost"]):
        assert rollout(*words) == 2
        assert words[1] in capsys.readouterr().err
    assert rollout("status") == 0
    assert "no rollouts yet" in capsys.readouterr().out


def test_approval_gate(fleet, capsys):
    """With --approve a passed gate waits and says so; promote opens the next stage."""
    rollout("start", "toy", "--approve", "--stages", "1,100%")
    hear(fleet, told(fleet))
    (one,) = status(capsys, "toy")
    assert (one["state"], one["reason"]) == ("waiting", "1 of 1 devices hold the version after stage 1 (1)")
    rollout("promote", "toy")
    assert len(told(fleet)) == 10


def test_status_shows_every_device(fleet, capsys):
    """A line of each device has step, percent, bytes, last error and last seen, those with troubles first."""
    book = PresenceBook()
    book.state("d03", State(1, online=True), time.time() - 300)
    with transaction(fleet.database):
        book.write(fleet.database)
    rollout("start", "toy", "--stages", "100%")
    hear(fleet, ["d03"], "fetching", percent=40, fetched=2048)
    hear(fleet, ["d07"], "failed", code="disk", error="full\x1b[2J")
    capsys.readouterr()
    assert rollout("status", "toy") == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert "\x1b" not in out
    assert lines[0] == "rollout 1  toy@2 to all devices: running, stage 1 of [100%]"
    assert lines[1] == "  10 of 10 devices told, 0 hold it (9 needed), 1 failed"
    assert lines[2].split()[:3] == ["d07", "1", "failed"]
    assert lines[2].endswith("disk: full\\x1b[2J")
    assert re.fullmatch(r"  d03  1   fetching 40 %   2/\d+ KiB +online, 5 min ago", lines[3])
    (one,) = status(capsys)
    (device,) = [d for d in one["devices"] if d["id"] == "d07"]
    assert (device["code"], device["step"], device["seen"]) == ("disk", "failed", None)


def test_status_of_many_and_of_old_ones(fleet, capsys):
    """Without a name the newest rollout of each model is shown, with --all every one."""
    fleet.push(model="other", hold=True)
    for words in (["toy@2"], ["toy@2"], ["other"]):
        rollout("start", *words)
    assert [(one["model"], one["id"], one["state"]) for one in status(capsys)] == [("toy", 2, "running"), ("other", 3, "running")]
    assert [one["state"] for one in status(capsys, "--all", "toy")] == ["superseded", "running"]


def test_watch_ends_with_the_rollout(fleet, capsys):
    """Watching draws until the rollout has ended; with --json each change is a line."""
    rollout("start", "toy", "--stages", "1,100%")
    capsys.readouterr()

    def play():
        with open_database(fleet.root / "fleet.sqlite") as database:
            for _ in range(2):
                time.sleep(0.8)
                with transaction(database):
                    record = newest_rollout(database, "toy")
                    advance(database, record, (Heard(tuple(Reported(name, "activated") for name in NAMES)),), time.time())

    player = threading.Thread(target=play)
    player.start()
    assert rollout("status", "toy", "--watch", "--json") == 0
    player.join()
    seen = [json.loads(line)[0] for line in capsys.readouterr().out.splitlines()]
    held = [one["activated"] for one in seen]
    assert (held[0], held[-1], held) == (0, 10, sorted(set(held)))
    assert seen[-1]["state"] == "finished"
    assert rollout("status", "--watch") == 0
    out = capsys.readouterr().out
    assert "toy@2 to all devices: finished" in out
    assert "10 hold it" in out
    assert "d09" in out


def test_picture_keeps_to_the_terminal(fleet):
    """Of a hundred devices on a screen of thirty lines those with troubles are drawn, and the others are counted."""
    from rich.console import Console

    from edgefl.cli.rollout_view import picture
    from edgefl.server.rollout_status import rollout_statuses

    fleet.provision(**{f"e{i:02}": "big" for i in range(90)})
    rollout("start", "toy", "--stages", "100%")
    hear(fleet, ["e77"], "failed", code="trial", error="[red]not markup[/red]")
    console = Console(width=120, height=30, record=True, file=io.StringIO())
    console.print(picture(rollout_statuses(fleet.database), time.time(), console.height))
    lines = console.export_text().splitlines()
    assert len(lines) <= 30
    assert any("e77" in line and "trial: [red]not markup[/red]" in line for line in lines)
    assert any(line.startswith("and 77 more") for line in lines)


@pytest.mark.usefixtures("fleet")
def test_rollback(capsys):
    """A rollback says what every device is to hold; without anything before it is an error."""
    rollout("start", "toy")
    capsys.readouterr()
    assert run(["rollback", "toy"]) == 0
    assert capsys.readouterr().out == "every device is to hold toy@1; ended rollout 1\n"
    assert run(["rollback", "toy"]) == 2
    assert "found toy@1" in capsys.readouterr().err
    assert run(["rollback", "toy", "--to", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"model": "toy", "version": 2, "ended": []}
    assert run(["rollback", "toy", "--to", "7"]) == 2


def test_tags_name_a_group(fleet, capsys):
    """Tags are put on, listed, taken off; a rollout by tag tells those devices only; a strange tag is refused."""
    for words in (["tag", "d01", "lab", "north"], ["tag", "d02", "lab"], ["untag", "d01", "north", "never"]):
        assert run(["devices", *words]) == 0
    assert capsys.readouterr().out.splitlines() == ["d01: lab, north", "d02: lab", "d01: lab"]
    assert run(["devices", "tags", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"d01": ["lab"], "d02": ["lab"]}
    assert rollout("start", "toy", "--tag", "lab", "--stages", "100%") == 0
    assert told(fleet) == ["d01", "d02"]
    for words, said in ((["tag", "d01", "a b"], "'a b'"), (["tag", "ghost", "lab"], "ghost"), (["tag", "d01"], "TAG")):
        assert run(["devices", *words]) == 2
        assert said in capsys.readouterr().err


def test_documentation_is_what_the_machine_says():
    """docs/rollouts.md is what its generator makes of the table of moves."""
    assert maker.DOCUMENT.read_text() == maker.document(), "run python tests/make_rollouts.py"


def test_commands_of_the_documentation_exist():
    """Each option that docs/rollouts.md names is one of the commands'."""
    from edgefl.cli.rollout import rollback
    from edgefl.cli.rollout import rollout as group

    commands = [group, *group.commands.values(), rollback]
    known = {
        name for command in commands for option in command.params if isinstance(option, click.Option) for name in option.opts
    }
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", maker.document())) - {"--name", "--hold"}
    assert named <= known
    assert {"rollout", "rollback"} <= set(COMMANDS)
