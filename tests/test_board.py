"""Agents and a server in one process over a broker in memory: what a board promises through loss, damage and sudden death."""

import hashlib
import logging
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
import pytest

from boardworld import MODEL, World
from edgefl.device.agent import Agent
from edgefl.errors import MessageError
from edgefl.identity.signing import ASSIGNMENT, Signer
from edgefl.link.memory import MemoryLink
from edgefl.link.memory_broker import Faults, MemoryBroker
from edgefl.server.founding import create_fleet
from edgefl.server.keys import online_signer
from edgefl.server.provision import provision
from edgefl.store.blobs import BlobStore
from edgefl.store.database import open_database
from edgefl.store.versions import variants
from edgefl.wire import topics
from edgefl.wire.messages import decode, encode
from edgefl.wire.presence import Report
from edgefl.wire.releases import Assigned, Assignment, Health

pytest.importorskip("torch")
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


@pytest.fixture
def world(pushed: Path, tmp_path: Path) -> Iterator[World]:
    """A fresh copy of the pushed fleet, with a broker in memory."""
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
