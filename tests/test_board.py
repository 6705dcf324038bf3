"""Agents and a server in one process over a broker in memory: what a board promises through loss, damage and sudden death."""

import hashlib
import logging
import os
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgefl.codec.update import decode as decode_update
from edgefl.codec.weights import Precision, encode_weights
from edgefl.device.agent import Agent
from edgefl.device.config import Bundle, load_bundle
from edgefl.device.job import Job
from edgefl.device.trainer import Trainer
from edgefl.device.voice import death
from edgefl.engine.contract import Trained
from edgefl.errors import MessageError
from edgefl.identity.signing import ASSIGNMENT, Signer
from edgefl.layout import Float32, Layout, Tensor
from edgefl.link.memory import MemoryLink
from edgefl.link.memory_broker import Faults, MemoryBroker
from edgefl.plan import Plan
from edgefl.server.founding import create_fleet
from edgefl.server.keys import online_signer
from edgefl.server.provision import provision
from edgefl.server.service import Service
from edgefl.store.blobs import BlobStore
from edgefl.store.database import open_database
from edgefl.store.fleet import Fleet
from edgefl.store.ledger import start_training
from edgefl.store.outbox import read_entry, read_residual, read_update
from edgefl.store.versions import latest_version, variants
from edgefl.wire import topics
from edgefl.wire.messages import decode, encode
from edgefl.wire.presence import Report
from edgefl.wire.releases import Assigned, Assignment, Health, Manifest
from edgefl.wire.rounds import Task, UpdatePart

pytest.importorskip("torch")
MODEL = "mnist-2nn"
PROFILE = "rpi-zero-2w"


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fleet of two devices with one pushed version; copied by each test that changes it."""
    from edgefl.server.push import PushRequest, profiles_in_use, push

    root = tmp_path_factory.mktemp("pushed")
    fleet = create_fleet(root / "fleet", name="test", host="127.0.0.1", port=8883)
    rng = np.random.default_rng(0)
    y = np.arange(60) % 10
    x = rng.normal(size=(60, 28, 28)).astype(np.float32) * 0.1 + y[:, None, None].astype(np.float32) / 10
    np.savez(root / "data.npz", x=x, y=y)
    provision(fleet, ["cam-01", "cam-02"], PROFILE, root / "bundles", data=f"npz:{root / 'data.npz'}")
    health = Health(starts=100)  # boards die here all the time, and not because of the version
    push(fleet, PushRequest(MODEL, MODEL, batch=16, health=health), profiles_in_use(fleet), now=time.time())
    return root


@dataclass
class World:
    """A server and boards that can be lost and started again."""

    root: Path
    database: sqlite3.Connection
    broker: MemoryBroker
    server: Service | None = None
    agents: dict[str, Agent] = field(default_factory=dict)
    links: dict[str, MemoryLink] = field(default_factory=dict)
    starts: int = 0

    @property
    def fleet(self) -> Fleet:
        """The fleet."""
        return Fleet.open(self.root / "fleet")

    def bundle(self, name: str) -> Bundle:
        """A device's bundle."""
        return load_bundle(self.root / "bundles" / name)

    def serve(self) -> Service:
        """Start the server, anew if there was one."""
        link = MemoryLink(self.broker, "edgefl-server")
        self.server = Service(self.database, BlobStore(self.fleet.blobs), link, online_signer(self.fleet))
        link.subscribe(topics.ALL_UP)
        return self.server

    def board(self, name: str) -> Agent:
        """Start a board, anew if there was one; its state directory stays."""
        self.starts += 1
        bundle = self.bundle(name)
        bundle.state.mkdir(exist_ok=True)
        link = self.links[name] = MemoryLink(self.broker, name, will=death(name, self.starts))
        agent = self.agents[name] = Agent(bundle, link, self.starts, rng=random.Random(self.starts))
        agent._following.begin()
        link.subscribe(topics.receipt(name))
        for model in agent._models.values():
            agent._hands.follow_orders(model)
            model.retry_at = 0.0
        return agent

    def lose(self, name: str) -> None:
        """The board loses power: its connection drops, its trainer dies, nothing is tidied up."""
        agent = self.agents.pop(name)
        agent._hands.close()
        self.links.pop(name).drop()

    def turn(self) -> None:
        """Everybody does what there is to do, without waiting long."""
        if self.server:
            self.server._turn()
        for agent in tuple(self.agents.values()):
            agent._wait = lambda: 0.0  # type: ignore[method-assign]  # the memory link does not sleep anyway
            agent._turn()
        time.sleep(0.002)

    def until(self, reached: Callable[[], object], seconds: float = 120.0) -> None:
        """Turn until something has happened."""
        deadline = time.monotonic() + seconds
        while not reached():
            assert time.monotonic() < deadline, "it did not happen"
            self.turn()

    def train(self, rounds: int, cohort: int = 2) -> None:
        """Start a training."""
        plan = Plan(rounds=rounds, cohort=cohort, quorum=cohort, epochs=1, learning_rate=0.05)
        start_training(self.database, latest_version(self.database, MODEL), plan, "", time.time())

    def counted(self) -> list[tuple[str, int, int | None]]:
        """Device, round and the round it was counted in, of every stored update."""
        return [tuple(row) for row in self.database.execute("SELECT device, round, counted FROM updates ORDER BY round, device")]

    def holds(self, name: str) -> bool:
        """Whether a board has an active version."""
        models = self.agents[name]._models
        return MODEL in models and models[MODEL].session.active is not None

    def finished(self) -> bool:
        """Whether the newest training has ended."""
        return self.database.execute("SELECT state FROM trainings ORDER BY id DESC").fetchone()[0] == "finished"


@pytest.fixture
def world(pushed: Path, tmp_path: Path) -> Iterator[World]:
    """A fresh copy of the pushed fleet, with a broker in memory."""
    import shutil

    shutil.copytree(pushed / "fleet", tmp_path / "fleet")
    shutil.copytree(pushed / "bundles", tmp_path / "bundles")
    with closing(open_database(tmp_path / "fleet" / "fleet.sqlite")) as database:
        world = World(tmp_path, database, MemoryBroker(random.Random(0)))
        yield world
        for name in tuple(world.agents):
            world.lose(name)


@pytest.mark.slow
def test_two_boards_train_with_a_server(world: World) -> None:
    """Each round counts one update of each board, and every board ends with the final weights."""
    world.serve()
    world.board("cam-01")
    world.board("cam-02")
    world.train(3)
    world.until(world.finished)
    assert world.counted() == [(f"cam-0{d}", r, r) for r in (1, 2, 3) for d in (1, 2)]
    newest = world.database.execute("SELECT result FROM rounds ORDER BY round DESC").fetchone()[0]
    world.until(lambda: all(_final(agent) for agent in world.agents.values()))
    assert newest is not None


def _final(agent: Agent) -> bool:
    model = agent._models[MODEL]
    manifest = model.stored_manifest()
    order = model.stored_order(manifest) if manifest else None
    return order is not None and order.task is None


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_boards_and_server_that_die_at_any_moment_lose_and_double_nothing(world: World, seed: int) -> None:
    """Sudden death of boards and server at random turns, messages doubled and reordered: each update counts exactly once."""
    chance = random.Random(seed)
    world.broker.faults = Faults(duplicate=0.1, reorder=0.1)  # what MQTT allows at QoS 1; loss comes with the deaths
    world.serve()
    world.board("cam-01")
    world.board("cam-02")
    world.train(4)
    deaths, deadline = 0, time.monotonic() + 120
    while not world.finished():
        assert time.monotonic() < deadline, world.counted()
        world.turn()
        if deaths < 12 and chance.random() < 0.02:
            deaths += 1
            victim = chance.choice(["cam-01", "cam-02", "server"])
            if victim == "server":
                world.serve()
            else:
                world.lose(victim)
                world.board(victim)
    stored = world.counted()
    assert len(stored) == len({(device, number) for device, number, _ in stored})
    per_round = [sum(counted == number for _, _, counted in stored) for number in (1, 2, 3, 4)]
    assert per_round == [2, 2, 2, 2]


@pytest.mark.slow
def test_download_goes_on_where_it_was_cut_off(world: World) -> None:
    """A board that dies in mid-download asks, after its restart, only for the blocks that it does not have."""
    world.serve()
    world.board("cam-01")
    partial = world.bundle("cam-01").state / "partial"
    world.until(lambda: any(p.have.bit_count() > 5 for p in _parts(world.agents["cam-01"])))
    world.lose("cam-01")
    assert list(partial.glob("*.part"))
    before = world.broker.delivered_bytes.total()
    world.board("cam-01")
    world.until(lambda: world.holds("cam-01"))
    total = variants(world.database, MODEL, 1)[0].manifest.total_bytes
    assert world.broker.delivered_bytes.total() - before < total
    assert not list(partial.glob("*.part"))


def _parts(agent: Agent) -> list[object]:
    return [active.file for active in agent._hands.fetcher._active.values()]


@pytest.mark.slow
def test_flipped_bit_in_a_block_is_found_and_the_block_fetched_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that was damaged on its way never reaches the disk; the version arrives whole all the same."""
    world.serve()
    agent = world.board("cam-01")
    fetcher = agent._hands.fetcher
    arrived, damaged = fetcher.arrived, []

    def damage(payload: bytes) -> None:
        if len(payload) > 30_000 and len(damaged) < 3:
            damaged.append(payload)
            payload = payload[:20_000] + bytes([payload[20_000] ^ 1]) + payload[20_001:]
        arrived(payload)

    monkeypatch.setattr(fetcher, "arrived", damage)
    world.until(lambda: world.holds("cam-01"))
    assert len(damaged) == 3
    blobs = BlobStore(world.bundle("cam-01").state / "blobs")
    for ref in variants(world.database, MODEL, 1)[0].manifest.files:
        assert hashlib.sha256(blobs.get(ref.sha256)).digest() == ref.sha256


@pytest.mark.slow
def test_damaged_file_of_an_active_version_is_fetched_again(world: World) -> None:
    """A flipped bit on the card is found at the next start, and only then trusted again when the file is whole."""
    world.serve()
    world.board("cam-01")
    world.until(lambda: world.holds("cam-01"))
    ref = variants(world.database, MODEL, 1)[0].manifest.file("weights")
    world.lose("cam-01")
    path = BlobStore(world.bundle("cam-01").state / "blobs").path(ref.sha256)
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(bytes(data))
    agent = world.board("cam-01")
    assert not world.holds("cam-01")
    world.until(lambda: world.holds("cam-01"))
    assert hashlib.sha256(path.read_bytes()).digest() == ref.sha256
    assert agent._models[MODEL].stored_manifest() is not None


@pytest.mark.slow
def test_full_disk_is_reported_and_the_version_comes_when_there_is_room(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without room a board says so, keeps running, and fetches as soon as there is room."""
    real, full = os.fstatvfs, [True]

    def fstatvfs(descriptor: int) -> os.statvfs_result:
        found = real(descriptor)
        return os.statvfs_result((*found[:4], 0, *found[5:])) if full[0] else found

    monkeypatch.setattr(os, "fstatvfs", fstatvfs)
    monkeypatch.setattr("edgefl.device.rests.PAUSE", 0.2)
    world.serve()
    world.board("cam-01")
    with caplog.at_level(logging.WARNING):
        world.until(lambda: "not enough disk space" in caplog.text)
    row = world.database.execute("SELECT report FROM presence WHERE device='cam-01'")
    world.until(lambda: (report := _report(world)) is not None and "disk space" in report.error)
    assert row is not None
    full[0] = False
    world.until(lambda: world.holds("cam-01"))


def _report(world: World) -> Report | None:
    row = world.database.execute("SELECT report FROM presence WHERE device='cam-01'").fetchone()
    return decode(row[0], Report) if row and row[0] is not None else None


def forged(signer: Signer, **changes: object) -> bytes:
    """An assignment to a version that does not exist, changed and signed by somebody."""
    good = Assignment("cam-01", 99, int(time.time()), int(time.time()) + 1000, (Assigned(MODEL, 2),))
    return encode(signer.sign(ASSIGNMENT, encode(msgspec.structs.replace(good, **changes))))


REFUSED: list[tuple[str, Callable[[World], bytes]]] = [
    ("signed by a key that is not trusted", lambda _: forged(Signer.generate())),
    ("for another purpose", lambda w: encode(online_signer(w.fleet).sign("round", b"x"))),
    ("has expired", lambda w: forged(online_signer(w.fleet), expires=1)),
    ("for another device", lambda w: forged(online_signer(w.fleet), device="cam-02")),
    ("does not decode", lambda _: b"\x00garbage"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("words", "payload"), REFUSED, ids=[words for words, _ in REFUSED])
def test_assignment_that_is_not_to_be_believed_changes_nothing(
    world: World, words: str, payload: Callable[[World], bytes], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An attacker on the broker cannot make a board install anything; the board says which rule was broken, and serves on."""
    monkeypatch.setattr("edgefl.device.following.PATIENCE", 0.5)
    agent = world.board("cam-01")
    attacker = MemoryLink(world.broker, "attacker")
    attacker.poll(0.0)
    attacker.publish(topics.assignment("cam-01"), payload(world), retain=True)
    attacker.poll(0.0)
    with caplog.at_level(logging.WARNING):
        world.until(lambda: words in caplog.text)
    assert all(model.session.installing is None and model.session.active is None for model in agent._models.values())


def test_manifest_larger_than_the_board_allows_is_refused(world: World) -> None:
    """A version that cannot fit is refused before a byte of it is fetched."""
    from edgefl.device.trust import believed_manifest

    config = msgspec.structs.replace(world.bundle("cam-01").config, storage_kib=100)
    payload = variants(world.database, MODEL, 1)[0].encoded
    with pytest.raises(MessageError, match="does not fit this device"):
        believed_manifest(payload, f"{MODEL}/{PROFILE}/1", hashlib.sha256(payload).digest(), config, time.time())


class ScriptedEngine:
    """An engine whose training adds a known vector."""

    layout = Layout((Tensor("w", (40, 10)),))

    def __init__(self, delta: Float32) -> None:
        self.delta = delta
        self._vector = np.zeros(400, dtype=np.float32)

    def set_vector(self, vector: Float32) -> None:
        """Keep it."""
        self._vector = vector.copy()

    def vector(self) -> Float32:
        """Give it back."""
        return self._vector

    def train(self, *_: object, **__: object) -> Trained:
        """Move by the known vector."""
        self._vector = self._vector + self.delta
        return Trained(1, 1.0, 0.5)


def job(directory: Path, number: int) -> Job:
    """A job for the scripted engine."""
    weights = encode_weights(np.zeros(400, dtype=np.float32), ScriptedEngine.layout, Precision.FP32)
    (directory / "weights").write_bytes(weights)
    np.savez(directory / "data.npz", x=np.zeros((4, 3), np.float32), y=np.zeros(4, np.int64))
    return Job(
        device="cam-01",
        version=1,
        variant="w1-fp32",
        round=number,
        engine="portable",
        layout=ScriptedEngine.layout,
        input_shape=(3,),
        classes=2,
        batch=4,
        graphs={},
        weights=str(directory / "weights"),
        source=f"npz:{directory / 'data.npz'}",
        task=Task(1, 0.1, 0.05, 3, 1.0, 0),
        outbox=str(directory / "outbox"),
        settled=str(directory / "settled"),
        personal=str(directory / "personal"),
    )


def test_what_was_sent_and_what_was_kept_is_the_whole_delta_round_after_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over any number of rounds and restarts, the updates and the last residual add up to all that was learnt."""
    rng = np.random.default_rng(3)
    learnt, sent = np.zeros(400), np.zeros(400)
    for number in range(1, 6):
        delta = rng.normal(size=400).astype(np.float32)
        engine = ScriptedEngine(delta)
        monkeypatch.setattr("edgefl.device.trainer.open_engine", lambda *_, engine=engine, **__: engine)
        Trainer(1).run(job(tmp_path, number))  # a new process each time, as after a power cut
        if number == 3:
            Trainer(1).run(job(tmp_path, number))  # cut off before the agent heard of it: trained again from the same residual
        update = decode_update(read_update(tmp_path / "outbox"), 400)
        learnt += delta
        sent += update.dense()
        (tmp_path / "outbox").rename(tmp_path / "settled")
    kept = read_residual(tmp_path / "settled")
    assert kept is not None
    np.testing.assert_allclose(sent + np.frombuffer(kept[1], "<f4"), learnt, atol=1e-4)


def test_same_job_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round that is trained twice gives one update, so that sending both counts once."""
    delta = np.random.default_rng(1).normal(size=400).astype(np.float32)
    monkeypatch.setattr("edgefl.device.trainer.open_engine", lambda *_, **__: ScriptedEngine(delta))
    first = Trainer(1).run(job(tmp_path, 1)).sha256
    assert Trainer(1).run(job(tmp_path, 1)).sha256 == first
    entry = read_entry(tmp_path / "outbox")
    assert entry is not None
    assert (entry.sha256, entry.samples) == (first, 4)


@pytest.mark.parametrize("cut", [1, 30, 200])
def test_damaged_outbox_counts_as_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int) -> None:
    """A truncated or changed outbox is never sent and never used as a residual."""
    monkeypatch.setattr("edgefl.device.trainer.open_engine", lambda *_, **__: ScriptedEngine(np.ones(400, np.float32)))
    Trainer(1).run(job(tmp_path, 1))
    path = tmp_path / "outbox"
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert read_entry(path) is None
    path.write_bytes(whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 4]) + whole[len(whole) // 2 + 1 :])
    assert read_residual(path) is None


def test_update_parts_fit_packets_and_carry_the_whole(world: World) -> None:
    """A large update is cut into parts, each within a packet, that join to the same bytes."""
    from edgefl.device.sending import UpdateSender
    from edgefl.store.outbox import OutboxEntry, write_outbox

    data = os.urandom(250_000)
    link = MemoryLink(world.broker, "cam-01")
    heard = MemoryLink(world.broker, "edgefl-server")
    heard.subscribe(topics.ALL_UP)
    heard.poll(0.0)
    link.poll(0.0)
    entry = OutboxEntry(1, "w1-fp32", 1, "x", 5, 1.0, 0.5, hashlib.sha256(data).digest(), len(data), 0)
    outbox = world.root / "outbox"
    write_outbox(outbox, entry, data, b"")
    UpdateSender("cam-01", link).send(MODEL, outbox, entry.sha256)
    link.poll(0.0)
    parts = [decode(event.payload, UpdatePart) for event in heard.poll(0.0) if hasattr(event, "payload")]
    assert [(p.part, p.parts) for p in parts] == [(0, 3), (1, 3), (2, 3)]
    assert b"".join(p.data for p in parts) == data


def test_manifest_type_is_what_travels() -> None:
    """The manifest of the wire is the one that devices believe or not."""
    assert Manifest.__struct_fields__[:4] == ("model", "version", "profile", "variant")
