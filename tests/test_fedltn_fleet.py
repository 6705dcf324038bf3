"""A fleet whose model is pruned while it trains: over a real broker, with a real server and real boards."""

import json
import sys
import time
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from edgefl.cli.main import run
from edgefl.codec.marks import gone
from edgefl.codec.weights import decode_weights
from edgefl.compress.magnitude import share_gone
from edgefl.demo.processes import Company
from edgefl.demo.stage import free_port
from edgefl.profile import shipped_profiles
from edgefl.server.founding import create_fleet
from edgefl.server.provision import provision
from edgefl.store.blobs import BlobStore
from edgefl.store.database import open_database
from edgefl.store.versions import variants

pytest.importorskip("torch")

from edgefl.server.push import PushRequest, push

PROFILE = "rpi-4b-2gb"
ROUNDS = 6
NAMES = ("cam-01", "cam-02")
MODEL = """
from torch import nn

class Window(nn.Sequential):
    input_shape = (20,)

def normed():
    return Window(nn.Linear(20, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 3))
"""


@pytest.fixture
def fleet(tmp_path, monkeypatch):
    """A fleet with two boards and a version whose normalisation stays on them."""
    (tmp_path / "normed_model.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "normed_model", raising=False)
    fleet = create_fleet(tmp_path / "fleet", name="farm", host="127.0.0.1", port=free_port())
    rng = np.random.default_rng(0)
    x = rng.standard_normal((120, 20)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=(x @ rng.standard_normal((20, 3))).argmax(1))
    provision(fleet, list(NAMES), PROFILE, tmp_path / "bundles", data=f"npz:{tmp_path / 'data.npz'}")
    request = PushRequest("windows", "normed_model:normed", batch=16, personal=("1.*",))
    push(fleet, request, (shipped_profiles()[PROFILE],), now=time.time())
    return fleet


@pytest.mark.slow
@pytest.mark.broker
def test_the_model_on_the_boards_becomes_sparser_from_round_to_round(fleet, tmp_path, capsys):
    """Files shrink, what is gone stays gone and is shown, no update is refused, and boards end with the pruned weights."""
    company = Company(tmp_path)
    at = ("--fleet", str(fleet.path))
    plan = ("--rounds", str(ROUNDS), "--cohort", "2", "--quorum", "2", "--sparsity", "0.3", "--staleness", "2")
    pruning = ("--pruning", "0.95", "--pruning-share", "0.7", "--pruning-first", "2", "--server-optimizer", "momentum")
    try:
        company.start("broker", "broker", *at).wait_for("broker ready", 60)
        company.start("server", "serve", *at).wait_for("serving fleet", 60)
        for name in NAMES:
            company.start(name, "device", "run", str(tmp_path / "bundles" / name))
        start = company.once("train", "train", "start", "windows", *plan, *pruning, "--server-rate", "0.3", *at)
        start.wait(60)
        start.check()
        with closing(open_database(fleet.database)) as database:
            layout = variants(database, "windows", 1)[0].manifest.layout
            until(lambda: database.execute("SELECT state FROM trainings").fetchone()["state"] != "running")
            offers = database.execute("SELECT weights FROM offers ORDER BY round").fetchall()
            counted = database.execute("SELECT device, counted FROM updates ORDER BY counted, device").fetchall()
        files = [BlobStore(fleet.blobs).get(bytes(row["weights"])) for row in offers]
        vectors = [decode_weights(data, layout) for data in files]
        shares = [share_gone(vector, layout) for vector in vectors]
        assert shares == sorted(shares), shares
        assert shares[0] == 0.0
        assert shares[-1] == pytest.approx(0.95, abs=0.01)
        for before, after in pairwise(vectors):
            assert (gone(after, layout) >= gone(before, layout)).all()
        assert len(files[-1]) < len(files[0]) / 4
        assert run(["status", "--json", *at]) == 0
        (told,) = json.loads(capsys.readouterr().out)["trainings"]
        assert [one["pruned"] for one in told["rounds"]] == pytest.approx([*shares[1:], shares[-1]])
        assert (told["pruned"], told["pruning_target"]) == (pytest.approx(shares[-1]), 0.95)
        assert [tuple(row) for row in counted] == [(name, number + 1) for number in range(ROUNDS) for name in NAMES]
        for name in NAMES:
            until(lambda name=name: share_on_board(tmp_path, name, layout) == shares[-1])
    finally:
        company.close()


def until(reached, seconds=120.0):
    """Wait for something."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


def share_on_board(root: Path, name: str, layout) -> float:
    """The most that is gone from any weights file that a board has fetched."""
    held = [path.read_bytes() for path in (root / "bundles" / name / "state" / "blobs").iterdir() if path.is_file()]
    return max([0.0, *(share_gone(decode_weights(data, layout), layout) for data in held if data[:4] == b"EFW\x03")])
