"""What `edgefl push --explain` says and draws."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgefl.cli.push import push
from edgefl.codec.weights import Precision
from edgefl.compress.budget import Structure, candidates
from edgefl.compress.choice import choose
from edgefl.compress.evidence import Demand
from edgefl.compress.planner import Budget
from edgefl.layout import Layout, Tensor
from edgefl.server.explained import COLUMNS, Explanation, explain, limits, table
from edgefl.server.founding import create_fleet

STRUCTURES = [Structure(f"w{n}", 1.0, Layout((Tensor("a", (n, 100)),))) for n in (64, 32, 8)]
ACCURACIES = {"w64": 0.9, "w32": 0.85, "w8": 0.5}
COARSE = {Precision.INT8: 0.01, Precision.INT4: 0.2}
MODEL = """
from torch import nn

class Window(nn.Sequential):
    input_shape = (6,)

def plain():
    return Window(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
"""


def explanation(storage: int) -> Explanation:
    """Of three structures under a budget, one of them made and measured."""
    budget = Budget(storage, 256 << 20)
    offered = candidates(STRUCTURES, {}, predicted=lambda one, p: ACCURACIES[one.name] - COARSE.get(p, 0.0))
    chosen, planned = choose("board", budget, offered)
    return explain("board", "portable", budget, planned, {chosen.name: 0.8}, "a look at them")


def test_the_table_has_the_choice_and_what_it_was_chosen_from() -> None:
    """One row is marked, what fits exceeds nothing, what is better exceeds something; measured where it was made."""
    one = explanation(60_000)
    rows = table(one)
    assert all(len(row) == len(COLUMNS) for row in rows)
    (chosen,) = [row for row in rows if row[0] == "*"]
    assert chosen[1] == "w32-fp16"
    assert (chosen[5], chosen[6], chosen[7]) == ("85.00 %", "80.00 %", "-")
    for row in rows[: rows.index(chosen)]:
        assert row[7].startswith("storage by")
    assert limits(one) == "at most 60,000 bytes of storage, 256 MiB of memory"
    assert one.reason.startswith("storage binds: w32-fp32 (85.00 %) needs ")


def test_what_was_refused_is_marked_though_its_run_was_ended() -> None:
    """It is on the frontier with a bound in place of a figure, and it is out nevertheless."""
    budget = Budget(10**9, 256 << 20)
    large, small = candidates(STRUCTURES[:2], {}, predicted=lambda one, p: ACCURACIES[one.name] if p == Precision.FP32 else None)
    ended = replace(large, demand=Demand(300 << 20, 0.0, measured=False, bound=True))
    _, planned = choose("board", budget, [ended, small])
    one = explain("board", "portable", budget, planned, {}, "a look at them", [ended])
    assert [row[:2] for row in table(one)] == [("x", "w64-fp32"), ("*", "w32-fp32")]


def test_the_picture_shows_every_profile(tmp_path: Path) -> None:
    """A PNG file, with and without predictions."""
    pytest.importorskip("matplotlib")
    from edgefl.simulate.explaining import draw_explanations

    offered = candidates(STRUCTURES, {})
    _, planned = choose("board", Budget(60_000), offered)
    blind = explain("other", "portable", Budget(60_000), planned, {}, "nothing")
    draw_explanations([explanation(60_000), blind], tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_command_explains_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As text after the table of variants, and as JSON beside what was pushed."""
    pytest.importorskip("torch")
    (tmp_path / "explained_windows.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    create_fleet(tmp_path / "fleet", name="test")
    options = [
        "explained_windows:plain",
        "--name",
        "w",
        "--profile",
        "rpi-zero-2w",
        "--explain",
        "--fleet",
        str(tmp_path / "fleet"),
    ]
    done = CliRunner().invoke(push, options, catch_exceptions=False)
    assert "the best there is, and it fits" in done.stdout
    assert "rpi-zero-2w (portable), at most 8,388,608 bytes of storage" in done.stdout
    said = json.loads(CliRunner().invoke(push, [*options, "--json"], catch_exceptions=False).stdout)
    assert said["pushed"][0]["version"] == 2
    assert said["explained"][0]["frontier"][0]["variant"] == said["pushed"][0]["variant"] == "w1-fp32"
    assert said["explained"][0]["basis"] == "no held-out examples"
