"""The whole way of an update in one process: what boards send is counted as the codec made it, through deaths and lost rounds.

What every update said is written down as the codec made it, by the hash of its bytes, and the server's results are computed again
from that (`updatepath`).
"""

import hashlib
import os
import random
from contextlib import suppress

import msgspec
import numpy as np
import pytest

from edgefl.device import coding
from edgefl.engine.contract import Trained
from edgefl.errors import UpdateError
from edgefl.server.history import Histories
from edgefl.store.outbox import read_memory
from edgefl.wire.messages import decode
from edgefl.wire.rounds import HISTORY_REACH, UpdatePart
from toyupdates import MODEL
from updatepath import DEVICES, LAYOUT, PLAN, Drifting, Fleet, playing


@pytest.fixture
def fleet(tmp_path, monkeypatch):
    """A fleet with three boards, two of one variant; every training's outcome is written down."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # processes die here, not the power
    with playing(monkeypatch, lambda: Fleet(tmp_path / "fleet")) as fleet:
        real = coding.compress

        def noted(*args, **kwargs):
            made = real(*args, **kwargs)
            sha256 = hashlib.sha256(made.data).digest()
            fleet.made[sha256], fleet.deltas[sha256] = made, args[0]
            return made

        monkeypatch.setattr(coding, "compress", noted)
        fleet.begin = np.random.default_rng(0).normal(scale=0.1, size=LAYOUT.size).astype(np.float32)
        yield fleet


def serve(fleet):
    """Start the server."""
    fleet.server = fleet.serve(steps=1)


def kill_server(fleet):
    """End the server as SIGKILL does."""
    fleet.server.kill()
    fleet.server = None


def check(fleet):
    """The server's weights are what the codec said, and each board's memory is that of its last settled update."""
    np.testing.assert_allclose(fleet.server.training.parent, fleet.reference(fleet.begin), atol=1e-5)
    rows = fleet.updates()
    assert len({(u["device"], u["round"]) for u in rows}) == len(rows)
    for name, device in fleet.devices.items():
        kept = read_memory(device.folder / "settled")
        if kept is not None:
            memory = fleet.made[kept[0].sha256].memory
            np.testing.assert_array_equal(np.frombuffer(kept[1], "<f4"), memory.residual)
            assert kept[2] == (b"" if memory.velocity is None else memory.velocity.astype("<f4").tobytes())
        stored = [u for u in rows if kept and u["device"] == name and u["round"] <= kept[0].round]
        if stored and fleet.made[stored[0]["sha256"]].memory.velocity is None:
            learnt = sum(fleet.deltas[u["sha256"]].astype(np.float64) for u in stored)
            sent = sum(fleet.made[u["sha256"]].sent.dense().astype(np.float64) for u in stored)
            np.testing.assert_allclose(sent + np.frombuffer(kept[1], "<f4"), learnt, atol=1e-3)


def contextual(fleet):
    """The updates that were coded with a history."""
    return [u for u in fleet.updates() if fleet.made[u["sha256"]].data[3] == 2]


def heard(device):
    """The newest order that a board has heard."""
    model = device.agent._models.get(MODEL)
    return model and model.session.heard


def finish(fleet):
    """Until all rounds are over and every board has its receipt."""
    fleet.reach(PLAN["rounds"] + 1)
    fleet.until(lambda: all(d.agent and not (d.folder / "outbox").exists() for d in fleet.devices.values()))


def test_updates_in_context_are_counted_as_they_were_made(fleet):
    """A training over both precisions: the result is the reference's, and most updates are coded with an earlier round."""
    fleet.train(**PLAN)
    serve(fleet)
    finish(fleet)
    check(fleet)
    coded = contextual(fleet)
    assert len(fleet.updates()) == 3 * PLAN["rounds"]
    assert len(coded) > 2 * PLAN["rounds"]
    assert all(u["before"] == u["round"] - 1 for u in coded if u["round"] > 2)
    assert fleet.rows("SELECT * FROM counters WHERE name='updates refused'") == []


def test_context_takes_fewer_bytes_than_plain_coding(tmp_path, fleet):
    """The same training with and without context: the updates are at least a tenth shorter, and the results are equally good."""
    fleet.train(**PLAN)
    serve(fleet)
    finish(fleet)
    other = Fleet(tmp_path / "plain")
    other.train(**PLAN, context=False)
    serve(other)
    try:
        other.reach(PLAN["rounds"] + 1)
        lengths = [sum(u["length"] for u in one.updates() if u["round"] > 1) for one in (fleet, other)]
        assert lengths[0] < 0.9 * lengths[1]
        assert all(u["before"] == 0 for u in other.updates())
    finally:
        kill_server(other)
        for device in other.devices.values():
            device.die()


def test_a_board_that_misses_rounds_is_read_with_what_it_holds(fleet):
    """Away for two rounds, a board codes with the round it trained last; away for longer, with the version's own weights."""
    fleet.train(**PLAN | {"rounds": 40, "deadline": 1.0})
    serve(fleet)
    fleet.reach(4)
    for away in (2, HISTORY_REACH + 2):
        fleet.devices["a"].die()
        last = max(u["round"] for u in fleet.updates() if u["device"] == "a")
        number = fleet.round() + away
        fleet.reach(number)
        fleet.devices["a"].start()
        fleet.reach(number + 3)
        first = next(u for u in fleet.updates() if u["device"] == "a" and u["round"] > last)
        assert first["round"] - last > away - 1
        if first in contextual(fleet):
            assert first["before"] == (last if first["round"] - last <= HISTORY_REACH else 0)
    check(fleet)
    assert fleet.rows("SELECT * FROM counters WHERE name='updates refused'") == []


def test_the_server_reads_stored_updates_again_after_a_restart(fleet):
    """Killed with updates of several rounds in its buffer, the server folds them again to the same result."""
    fleet.train(**PLAN)
    serve(fleet)
    fleet.reach(5)
    fleet.devices["c"].die()
    fleet.until(lambda: sum(u["counted"] is None for u in fleet.updates()) == 2)
    waiting = [u for u in fleet.updates() if u["counted"] is None]
    assert any(u in contextual(fleet) for u in waiting)
    kill_server(fleet)
    serve(fleet)
    fleet.devices["c"].start()
    finish(fleet)
    check(fleet)


@pytest.mark.parametrize("plan", [{}, {"correction": 0.5}, {"downlink_sparsity": 0.2}, {"staleness": 0}])
@pytest.mark.parametrize("seed", range(2))
def test_deaths_at_random_lose_and_double_nothing(fleet, plan, seed):
    """Boards and server die and come back at random moments; every update counts once, as it was made, and rounds go on."""
    rng = random.Random(seed)
    fleet.train(**PLAN | plan)
    serve(fleet)
    for _ in range(100_000):
        if fleet.round() > PLAN["rounds"]:
            break
        fleet.turn()
        for device in fleet.devices.values():
            if device.agent and rng.random() < 0.03:
                device.die()
            elif device.agent is None and rng.random() < 0.3:
                device.start()
        if rng.random() < 0.02:
            kill_server(fleet)
            serve(fleet)
    for device in fleet.devices.values():
        if device.agent is None:
            device.start()
    finish(fleet)
    check(fleet)
    assert len(contextual(fleet)) > PLAN["rounds"]


def test_an_update_whose_history_is_gone_is_refused_and_the_next_one_counts(fleet):
    """The disk of the server has lost old weights: the board hears why, and codes its next update with what is left."""
    fleet.train(**PLAN | {"rounds": 30, "deadline": 1.0})
    serve(fleet)
    fleet.reach(5)
    fleet.devices["a"].die()
    last = max(u["round"] for u in fleet.updates() if u["device"] == "a")
    fleet.reach(fleet.round() + 2)
    kill_server(fleet)
    (sha256,) = fleet.rows("SELECT weights FROM offers WHERE round=? AND variant='w1-fp32'", last)[0]
    fleet.blobs.path(sha256).unlink()
    serve(fleet)
    fleet.devices["a"].start()
    fleet.until(lambda: fleet.rows("SELECT value FROM counters WHERE name='updates refused'") == [(1,)])
    fleet.until(lambda: any(u["device"] == "a" and u["round"] > last for u in fleet.updates()))
    mine = [u for u in fleet.updates() if u["device"] == "a" and u["round"] > last]
    assert mine[0]["before"] == 0
    fleet.reach(fleet.round() + 3)
    check(fleet)
    assert fleet.rows("SELECT value FROM counters WHERE name='updates refused'") == [(1,)]


def test_a_board_never_holds_more_than_three_weights_files(fleet):
    """The version's own, the round's, and the one before: what the planner counts, whatever the turn."""
    fleet.train(**PLAN)
    serve(fleet)
    most = 0
    while fleet.round() <= PLAN["rounds"]:
        fleet.turn()
        for device in fleet.devices.values():
            with suppress(FileNotFoundError, ValueError):
                most = max(most, device.weights_files())
    assert most == 3


def test_what_is_kept_for_late_updates_does_not_grow(fleet):
    """Weights of the staleness and the reach stay on the server's disk, those of earlier rounds go."""
    fleet.train(**PLAN | {"rounds": 40})
    serve(fleet)
    counts = []
    for number in range(16, 28):
        fleet.reach(number)
        counts.append(len(list(fleet.blobs.root.iterdir())))
    assert max(counts[6:]) <= max(counts[:6])
    oldest = fleet.rows("SELECT MIN(round) FROM offers")[0][0]
    assert fleet.round() - oldest in range(PLAN["staleness"] + HISTORY_REACH, PLAN["staleness"] + HISTORY_REACH + 3)


def test_biased_sampling_prefers_the_board_that_is_behind(fleet, monkeypatch):
    """With loss-biased sampling a board whose loss stays high takes part more often than one whose loss is low."""

    def lopsided(self, examples, *_, **__):
        self._vector = self._vector + np.float32(0.01)
        return Trained(1, 2.0, (0.2, 1.0, 1.8)[int(examples.x[0, 0])])

    monkeypatch.setattr(Drifting, "train", lopsided)
    fleet.train(**PLAN | {"rounds": 60, "cohort": 1, "fraction": 0.35, "sampling": "loss", "deadline": 0.5, "quorum": 1})
    serve(fleet)
    for _ in range(6000):
        fleet.turn(0.2)
        if fleet.round() > 45:
            break
    times = {name: sum(u["device"] == name for u in fleet.updates()) for name in DEVICES}
    assert fleet.round() > 45
    assert times["c"] > times["a"] + 5


def test_the_orders_task_follows_the_plans_schedule(fleet):
    """Decay and warm-up come with the order, and the mean loss of the round before."""
    fleet.train(**PLAN | {"decay": 0.5, "warmup": 2, "sparsity": 0.01, "sampling": "loss", "rate": "loss", "price": 0.1})
    serve(fleet)
    tasks = []
    for number in range(1, 5):
        fleet.reach(number)
        fleet.until(lambda n=number: heard(fleet.devices["a"]) and heard(fleet.devices["a"]).round == n)
        tasks.append(heard(fleet.devices["a"]).task)
    assert [task.learning_rate for task in tasks] == [0.1, 0.05, 0.025, 0.0125]
    assert [round(task.sparsity, 6) for task in tasks] == [0.25, 0.05, 0.01, 0.01]
    assert tasks[0].loss == 0.0
    for number, task in enumerate(tasks[1:], start=1):
        reported = [row[0] for row in fleet.rows("SELECT loss FROM updates WHERE counted=?", number)]
        assert task.loss == pytest.approx(np.mean(reported))
    assert all(task.biased and task.rate == "loss" and task.price == 0.1 and task.context for task in tasks)
    kill_server(fleet)
    serve(fleet)
    assert fleet.server.training.loss == tasks[-1].loss


def test_an_impossible_before_is_refused(fleet):
    """A round that lies too far back, or not back at all, is refused without looking for it."""
    fleet.train(**PLAN)
    serve(fleet)
    fleet.reach(5)
    histories = fleet.server.training.histories
    assert isinstance(histories, Histories)
    data = next(fleet.made[u["sha256"]].data for u in contextual(fleet))
    for before in (5, 6, 1 << 40):
        with pytest.raises(UpdateError, match="impossible round"):
            histories.decode(data, "w1-fp32", 5, before)


def test_a_message_of_an_older_device_names_no_earlier_round():
    """An update that says no `before` counts as one that used none."""
    old = msgspec.msgpack.encode(["toy", 1, "w1-fp32", 1, 5, 2.0, 1.0, bytes(32), 0, 1, b"x"])
    assert decode(old, UpdatePart).before == 0
