"""One delivery machine and a fleet of download machines over the broker in memory: all get the file, at the price of one."""

import hashlib
import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from edgefl.device import download, download_events, download_state
from edgefl.link.contract import Arrived
from edgefl.link.memory import MemoryLink
from edgefl.link.memory_broker import Faults, MemoryBroker
from edgefl.server import delivery, delivery_events
from edgefl.wire import topics
from edgefl.wire.blocks import file_ref
from edgefl.wire.files import BLOCK_SIZE, Block, Want
from edgefl.wire.messages import decode, encode

CONTENT = random.Random(11).randbytes(60 * BLOCK_SIZE + 5)
REF = file_ref("weights", CONTENT)
TOPIC = topics.block(REF.sha256.hex())
STEP = 0.01


@dataclass
class Board:
    """A device: a link, a download, and the file in memory."""

    name: str
    link: MemoryLink
    joins: float
    data: bytearray = field(default_factory=lambda: bytearray(REF.length))
    stored: Counter[int] = field(default_factory=Counter)
    state: download_state.Download | None = None
    finished: float = 0.0

    def turn(self, now: float, rng: random.Random) -> None:
        """Hear what has arrived, let the timer run, ask."""
        if now < self.joins:
            return
        if self.state is None:
            self.link.subscribe(TOPIC)
            self.link.poll(0.0)
            self.state, effects = download.begin(REF, 0, now, first=rng.randrange(len(REF.blocks)))
            self.perform(effects, now)
        for event in self.link.poll(0.0):
            if isinstance(event, Arrived):
                self.state, effects = download.step(self.state, download_events.BlockArrived(decode(event.payload, Block)), now)
                self.perform(effects, now)
        due = download.wake_at(self.state)
        if due is not None and due <= now:
            self.state, effects = download.step(self.state, download_events.Tick(rng.random()), now)
            self.perform(effects, now)

    def perform(self, effects: tuple[download_events.Effect, ...], now: float) -> None:
        """Do what the machine says."""
        for effect in effects:
            match effect:
                case download_events.Ask(request):
                    self.link.publish(topics.want(self.name), encode(request))
                case download_events.Store(index, data):
                    self.data[index * BLOCK_SIZE : index * BLOCK_SIZE + len(data)] = data
                    self.stored[index] += 1
                case download_events.Complete():
                    self.finished = now
                case download_events.Reject():
                    pytest.fail("no block was damaged")


def simulate(count: int, faults: Faults, *, late: int = 0, seed: int = 0) -> tuple[list[Board], MemoryBroker]:
    """Run until all have the file; `late` boards join at random within two seconds, the others within 20 ms."""
    rng = random.Random(seed)
    broker = MemoryBroker(random.Random(seed + 1))
    server = MemoryLink(broker, "server")
    server.subscribe(topics.ALL_UP)
    server.poll(0.0)
    broker.faults = faults
    state, _ = delivery.step(delivery.Delivery(), delivery_events.Offered(REF.sha256, len(REF.blocks)), 0.0)
    boards = [
        Board(f"d{number}", MemoryLink(broker, f"d{number}"), rng.uniform(0.0, 2.0 if number < late else 0.02))
        for number in range(count)
    ]
    now = 0.0
    while not all(board.finished for board in boards):
        assert now < 300.0, "the fleet did not finish"
        now += STEP
        for board in boards:
            board.turn(now, rng)
        for event in server.poll(0.0):
            if isinstance(event, Arrived):
                device, _ = topics.parse_up(event.topic)
                state, _ = delivery.step(state, delivery_events.Wanted(device, decode(event.payload, Want)), now)
        due = delivery.wake_at(state)
        if due is not None and due <= now:
            state, effects = delivery.step(state, delivery_events.Tick((8 << 20) - server.outgoing), now)
            for effect in effects:
                assert isinstance(effect, delivery_events.SendBlocks)
                for index in effect.indices:
                    data = CONTENT[index * BLOCK_SIZE :][:BLOCK_SIZE]
                    server.publish(TOPIC, encode(Block(REF.sha256[:16], index, data)), qos=0)
            server.poll(0.0)
    return boards, broker


def check(boards: list[Board]) -> None:
    """Everybody has the file, and stored each block once."""
    for board in boards:
        assert hashlib.sha256(board.data).digest() == REF.sha256
        assert set(board.stored.values()) == {1}


@pytest.mark.parametrize("count", [50, pytest.param(200, marks=pytest.mark.slow)])
def test_clean_link_costs_one_file(count: int) -> None:
    """However many devices join together, they cost the server at most 1.3 files, and finish quickly."""
    boards, broker = simulate(count, Faults())
    check(boards)
    assert broker.published_bytes[TOPIC] <= 1.3 * REF.length
    assert max(board.finished for board in boards) < 5.0


def test_latecomers_cost_little() -> None:
    """Twenty-five devices that join one by one, most after the others are done, share: a fifth of a file each, not a whole."""
    boards, broker = simulate(50, Faults(), late=25)
    check(boards)
    assert broker.published_bytes[TOPIC] <= (1.3 + 25 / 5) * REF.length


@pytest.mark.parametrize("seed", range(3))
def test_lossy_links_complete(seed: int) -> None:
    """With 5 % loss, duplicates and reordering everybody gets the file, for far less than a file per device."""
    boards, broker = simulate(50, Faults(loss=0.05, duplicate=0.02, reorder=0.05), late=10, seed=seed)
    check(boards)
    assert broker.published_bytes[TOPIC] <= 5.0 * REF.length


def test_same_seed_same_run() -> None:
    """A simulation repeats exactly under its seed."""
    faults = Faults(loss=0.2, duplicate=0.1, reorder=0.2)
    runs = [simulate(5, faults, late=2, seed=9) for _ in range(2)]
    assert [board.finished for board in runs[0][0]] == [board.finished for board in runs[1][0]]
    assert runs[0][1].published == runs[1][1].published
