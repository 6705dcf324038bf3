"""What ends is said before it ends, and what to do: certificates, metadata, pairs that cannot be read."""

import json
import time
from contextlib import closing
from pathlib import Path

import pytest

from edgefl.cli.main import run
from edgefl.server.endings import endings
from edgefl.store.database import open_database
from edgefl.store.fleet import Fleet
from fleetpairs import DAY, age, fits, with_a_device


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """A fleet with the device cam-01, whose bundle lies beside it."""
    return with_a_device(tmp_path)


@pytest.mark.parametrize(
    ("days", "expected"),
    [
        (0, {}),
        (12, {"snapshot metadata": "soon", "timestamp metadata": "soon"}),
        (340, {"snapshot metadata": "over", "timestamp metadata": "over", "targets metadata": "soon"}),
        (3630, {"broker": "soon", "server": "soon", "root metadata": "over", "targets metadata": "over", "device cam-01": "ok"}),
        (3645, {"broker": "soon", "server": "soon", "device cam-01": "soon"}),
        (7000, {"broker": "over", "server": "over", "intermediate": "soon", "device cam-01": "over"}),
        (10_700, {"intermediate": "over", "root": "soon"}),
    ],
)
def test_everything_that_ends_is_said_before_it_ends(fleet: Fleet, days: int, expected: dict[str, str]) -> None:
    """Certificates of fleet and devices and every role of the metadata: `ok`, then `soon` with a remedy, then `over`."""
    with closing(open_database(fleet.database)) as database:
        found = {one.name: one for one in endings(fleet, database, time.time() + days * DAY)}
    assert {name: found[name].state if name in found else "ok" for name in expected} == expected
    assert all(bool(one.remedy) == (one.state != "ok") for one in found.values())
    if not expected:
        assert {one.state for one in found.values()} == {"ok"}


def test_status_warns_and_says_what_to_do(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    """A server's certificate that ends in a fortnight, and a damaged broker's: in words, and in `--json`."""
    arguments = ["--fleet", str(fleet.path)]
    assert run(["status", *arguments]) == 0
    assert not capsys.readouterr().err
    age(fleet, "server", 86)
    fleet.pair("broker").write_text("nothing of use")
    assert run(["status", *arguments]) == 0
    said = capsys.readouterr().err
    assert "to do: server ends soon. Run `edgefl certificates renew server`." in said
    assert "to do: broker cannot be read." in said
    assert run(["status", "--json", *arguments]) == 0
    warned = json.loads(capsys.readouterr().out)["warnings"]
    assert [(one["name"], one["state"]) for one in warned] == [("broker", "damaged"), ("server", "soon")]
    assert run(["certificates", "ls", "--json", *arguments]) == 0
    assert {one["name"] for one in json.loads(capsys.readouterr().out)} >= {"broker", "server", "intermediate", "root"}


def test_a_damaged_certificate_is_replaced_when_its_life_is_given(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    """Without `--days` nobody knows how long the new one should live, and the error says so."""
    fleet.pair("broker").write_text("nothing of use")
    arguments = ["certificates", "renew", "broker", "--fleet", str(fleet.path)]
    assert run(arguments) == 2
    assert "renew broker --days" in capsys.readouterr().err
    assert run([*arguments, "--days", "90"]) == 4  # no broker runs that could be asked
    assert fits(fleet.pair("broker"))
