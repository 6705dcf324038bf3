"""A fleet of slow links, each with its queue: what the server sends for all of them, and how long the last one waits."""

import random
from collections import Counter, deque
from dataclasses import dataclass, field

import pytest

from edgefl.device import download
from edgefl.device.download_events import Ask, BlockArrived, Complete, Effect, GoAlone, Tick
from edgefl.device.download_state import Download
from edgefl.server import delivery, delivery_events
from edgefl.server.lanes import slot_of
from edgefl.wire.blocks import file_ref
from edgefl.wire.messages import BLOCK_SIZE, Block, Want

COUNT = 24
CONTENT = random.Random(1).randbytes(COUNT * BLOCK_SIZE)
REF = file_ref("weights", CONTENT)
RATE = 16_000.0
IDEAL = REF.length / RATE
STEP, LATENCY = 0.02, 0.05


def block(index: int, sent: int) -> Block:
    """A good block, sent then."""
    return Block(REF.sha256[:16], index, CONTENT[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE], sent)


@dataclass
class Board:
    """A device behind a link that delivers in order, a block at a time."""

    name: str
    rate: float
    joins: float
    first: int
    state: Download | None = None
    queue: deque[tuple[float, Block]] = field(default_factory=deque)
    free_at: float = 0.0
    listens: bool = False
    finished: float = 0.0
    wants: list[Want] = field(default_factory=list)

    def send(self, index: int, now: float) -> None:
        """A block enters the link's queue."""
        self.free_at = max(self.free_at, now) + BLOCK_SIZE / self.rate
        self.queue.append((self.free_at, block(index, slot_of(now))))

    def turn(self, now: float, rng: random.Random) -> None:
        """Hear what has come through, and let the timer run."""
        if self.finished or now < self.joins:
            return
        if self.state is None:
            self.listens = True
            self.state, effects = download.begin(REF, 0, now, first=self.first)
            self.perform(effects, now)
        while self.queue and self.queue[0][0] <= now and not self.finished:
            _, arrived = self.queue.popleft()
            self.state, effects = download.step(self.state, BlockArrived(arrived), now)
            self.perform(effects, now)
        due = download.wake_at(self.state)
        if due is not None and due <= now:
            self.state, effects = download.step(self.state, Tick(rng.random()), now)
            self.perform(effects, now)

    def perform(self, effects: tuple[Effect, ...], now: float) -> None:
        """Do what the machine says."""
        for effect in effects:
            match effect:
                case Ask(request):
                    self.wants.append(request)
                case GoAlone():
                    self.listens = False
                case Complete():
                    self.finished, self.listens = now, False


def simulate(count: int, joins: float, seed: int) -> tuple[list[Board], Counter[str]]:
    """Links of 14 to 18 KB/s that join within so many seconds; the boards, and blocks sent to each device and to all."""
    rng = random.Random(seed)
    boards = [Board(f"d{n}", RATE * rng.uniform(0.88, 1.12), rng.uniform(0.0, joins), rng.randrange(COUNT)) for n in range(count)]
    server, _ = delivery.step(delivery.Delivery(), delivery_events.Offered(REF.sha256, COUNT), 0.0)
    now, sent, waiting = 0.0, Counter[str](), deque[tuple[float, str, Want]]()
    while not all(board.finished for board in boards):
        assert now < 2000.0, "the fleet did not finish"
        now += STEP
        for board in boards:
            board.turn(now, rng)
            waiting.extend((now + LATENCY, board.name, want) for want in board.wants)
            board.wants.clear()
        while waiting and waiting[0][0] <= now:
            _, name, want = waiting.popleft()
            server, _ = delivery.step(server, delivery_events.Wanted(name, want), now)
        due = delivery.wake_at(server)
        if due is None or due > now:
            continue
        server, effects = delivery.step(server, delivery_events.Tick(1 << 22), now)
        for effect in effects:
            assert isinstance(effect, delivery_events.SendBlocks)
            sent[effect.device] += len(effect.indices)
            for board in boards:
                if effect.device == board.name or (not effect.device and board.listens):
                    for index in effect.indices:
                        board.send(index, now)
    return boards, sent


@pytest.mark.parametrize(("count", "joins"), [(1, 0.0), (6, 5.0), (6, 30.0)])
def test_slow_links_share_and_nobody_waits_long(count: int, joins: float) -> None:
    """Six slow links out of step cost half of six files at most, and the last one has its file in 2.5 times the time."""
    files, waits = [], []
    for seed in range(3):
        boards, sent = simulate(count, joins, seed)
        files.append(sent.total() / COUNT)
        waits.append(max(board.finished - board.joins for board in boards))
    assert sum(files) / 3 <= (1.1 if count == 1 else 3.0)
    assert max(waits) <= (1.2 if count == 1 else 2.5) * IDEAL
