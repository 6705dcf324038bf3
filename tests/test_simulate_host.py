"""A virtual device is a board without its broker: the same bytes. On a real, checked-in variant, without torch."""

import hashlib

import msgspec
import numpy as np
import pytest

import make_graphs as make
from edgefl.codec.marks import factors
from edgefl.codec.weights import Precision, encode_weights
from edgefl.compress.magnitude import pruned
from edgefl.device.job import Held, Job
from edgefl.device.trainer import Trainer
from edgefl.engine.portable import PortableEngine
from edgefl.plan import FleetPruning
from edgefl.simulate.experiment import Attack
from edgefl.simulate.host import Host
from edgefl.simulate.jobs import Job as Work
from edgefl.simulate.jobs import Player, SceneHead
from edgefl.simulate.scene import Scene, Structure
from edgefl.store.outbox import read_update
from edgefl.wire.rounds import Task

GOLDEN = make.read("variant-dense")
START = np.frombuffer(GOLDEN.start, dtype=np.float32)
TASK = Task(epochs=2, learning_rate=0.1, sparsity=0.1, bits=4, fraction=1.0, seed=3, context=True, correction=0.5)


def examples(count=40, devices=4):
    """Examples of several devices that have something to learn in them."""
    rng = np.random.default_rng(5)
    y = rng.integers(0, GOLDEN.classes, count * devices)
    return rng.normal(size=(count * devices, *GOLDEN.input_shape)).astype(np.float32) + y[:, None].astype(np.float32), y


def scene(devices=4, *, momentum=True):
    """Devices of the golden variant with forty examples each."""
    x, y = examples(devices=devices)
    head = SceneHead(GOLDEN.layout, GOLDEN.input_shape, GOLDEN.classes, GOLDEN.batch, GOLDEN.recipe, momentum)
    one = Structure(head, GOLDEN.files)
    none = np.zeros(devices, dtype=np.int64)
    return Scene((one,), x, y, np.arange(len(y)), np.arange(devices + 1) * 40, none, none)


def of(weights):
    """Weights by round, of the one structure that there is."""
    return lambda _, number: weights[number]


@pytest.fixture
def host(tmp_path):
    """A host of four devices."""
    (tmp_path / "host").mkdir()
    scene().write_graphs(tmp_path / "host")
    return Host(scene(), tmp_path / "host")


def board(tmp_path, number, second):
    """What a real trainer sends for device `number` in two rounds, of which the second begins with these weights."""
    x, y = examples()
    rows = slice(40 * number, 40 * number + 40)
    np.savez(tmp_path / "data.npz", x=x[rows], y=y[rows])
    graphs = {}
    for role, data in GOLDEN.files.items():
        (tmp_path / role).write_bytes(data)
        graphs[role] = str(tmp_path / role)
    held = []
    for name, vector, label in (("start", START, 0), ("start", START, 1), ("second", second, 2)):
        data = encode_weights(vector, GOLDEN.layout, Precision.FP32)
        (tmp_path / name).write_bytes(data)
        held.append(Held(path=str(tmp_path / name), sha256=hashlib.sha256(data).digest(), round=label))
    job = Job(
        device=f"cam-0{number}", version=1, variant="w1-fp32", round=1, engine=GOLDEN.engine, layout=GOLDEN.layout,
        input_shape=GOLDEN.input_shape, classes=GOLDEN.classes, batch=GOLDEN.batch, graphs=graphs,
        weights=str(tmp_path / "start"), source=f"npz:{tmp_path / 'data.npz'}", task=TASK, outbox=str(tmp_path / "outbox"),
        settled=str(tmp_path / "settled"), recipe=GOLDEN.recipe, personal=str(tmp_path / "personal"),
        weights_sha256=held[1].sha256, start=held[0], before=None,
    )  # fmt: skip
    sent = []
    for changes in ({}, {"round": 2, "weights": str(tmp_path / "second"), "before": held[1]}):
        Trainer(1).run(msgspec.structs.replace(job, **changes))
        sent.append(read_update(tmp_path / "outbox"))
        (tmp_path / "outbox").rename(tmp_path / "settled")
    return sent


def test_a_virtual_device_sends_what_a_board_sends(host, tmp_path) -> None:
    """Two rounds with error feedback, momentum and history: the updates are those of the board's trainer, byte by byte."""
    second = START + np.float32(0.01)
    weights = {0: START, 1: START, 2: second}
    [(first, kept)] = host.play(Work(1, TASK, (Player(2, "cam-02"),)), of(weights), [b""])
    [(again, _)] = host.play(Work(2, TASK, (Player(2, "cam-02", first.loss_after, 1),)), of(weights), [kept])
    assert [first.data, again.data] == board(tmp_path, 2, second)
    assert first.samples == 40
    assert first.loss_after < first.loss_before


def test_a_virtual_device_trains_with_the_tasks_weights(host) -> None:
    """One that its graphs do not have fails it, as on a board."""
    [(played, _)] = host.play(Work(1, msgspec.structs.replace(TASK, mutual=0.5), (Player(0, "cam-00"),)), of({1: START}), [b""])
    assert "found the weight 0.5" in played.failure


def test_the_probe_of_a_virtual_device_moves_what_its_training_moves(host, monkeypatch) -> None:
    """With a rate by curvature on pruned weights, as on a board: what is gone is left out of the two steps that measure it."""
    seen = []
    real = PortableEngine.train
    monkeypatch.setattr(PortableEngine, "train", lambda *a, **k: seen.append(k["kept"]) or real(*a, **k))
    thin = pruned(START, GOLDEN.layout, FleetPruning(target=0.5, share=1.0, first=1))
    host.play(Work(1, msgspec.structs.replace(TASK, rate="curvature"), (Player(0, "cam-00"),)), of({0: thin, 1: thin}), [b""])
    assert len(seen) == 3
    for kept in seen:
        np.testing.assert_array_equal(kept, factors(thin, GOLDEN.layout))


def test_what_a_device_sends_does_not_depend_on_who_was_played_before(host) -> None:
    """An engine that has played others leaves no trace."""
    weights = {0: START, 1: START}
    work = Work(1, TASK, (Player(0, "cam-00"),))
    alone = host.play(work, of(weights), [b""])
    host.play(Work(1, TASK, (Player(1, "cam-01"),)), of(weights), [b""])
    assert host.play(work, of(weights), [b""]) == alone


def test_a_measurement_changes_nothing_and_sends_nothing(host) -> None:
    """Accuracy on the device's own examples; what it keeps stays."""
    [(found, kept)] = host.play(Work(1, None, (Player(0, "cam-00"),)), of({1: START}), [b"as it was"])
    assert 0.0 <= found.accuracy <= 1.0
    assert (found.data, kept) == (b"", b"as it was")


def test_conspirators_all_say_the_same(host) -> None:
    """With ALIE every attacker of a round sends the same update, which no honest one sends."""
    weights = of({0: START, 1: START})
    plain = msgspec.structs.replace(TASK, bits=1)
    attack = Attack(kind="alie", strength=1.0)
    players = tuple(Player(number, f"cam-0{number}", attack=attack) for number in (1, 2, 3))
    lies = {played.data for played, _ in host.play(Work(1, plain, players, 20), weights, [b""] * 3)}
    honest = host.play(Work(1, plain, (Player(1, "cam-01"),)), weights, [b""])[0][0].data
    assert len(lies) == 1
    assert honest not in lies


def test_a_training_that_diverges_is_the_devices_failure(host) -> None:
    """It sends nothing, says why, and keeps what it had."""
    wild = msgspec.structs.replace(TASK, learning_rate=100.0, epochs=50)
    x_large = {0: START * 1e18, 1: START * 1e18}
    [(played, kept)] = host.play(Work(1, wild, (Player(0, "cam-00"),)), of(x_large), [b""])
    assert "diverged" in played.failure or "finite" in played.failure
    assert (played.data, kept) == (b"", b"")
