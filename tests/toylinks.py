"""A fleet of download machines and one delivery machine, each device behind a link that keeps the order and loses nothing.

That is what TCP makes of a slow or lossy link: blocks come late, in bursts, after others. What was sent waits in the broker as
long as it takes; a connection that ends takes its queue with it.
"""

import random
from collections import Counter, deque
from dataclasses import dataclass, field

from edgefl.device import download
from edgefl.device.download_events import Ask, BlockArrived, Complete, Effect, GoAlone, Reconnected, Tick
from edgefl.device.download_state import Download
from edgefl.server import delivery, delivery_events
from edgefl.server.gather import GATHER
from edgefl.server.lanes import slot_of
from edgefl.wire.blocks import file_ref
from edgefl.wire.files import BLOCK_SIZE, Block, FileRef, Want

STEP, LATENCY = 0.02, 0.05
LONGEST = 4000.0


@dataclass(frozen=True)
class File:
    """A file of so many random blocks."""

    blocks: int

    @property
    def content(self) -> bytes:
        """Its bytes."""
        return random.Random(1).randbytes(self.blocks * BLOCK_SIZE)


@dataclass
class Board:
    """A device behind its link.

    Attributes:
        rate: bytes per second of the link; times vary by `spread`, the share of the time that is drawn.
        joins: when it begins.
        cuts: when its connection ends, and when there is a new one.
        came: when each good block came.
    """

    name: str
    rate: float
    joins: float
    first: int
    spread: float = 0.0
    cuts: list[tuple[float, float]] = field(default_factory=list)
    state: Download | None = None
    queue: deque[tuple[float, Block]] = field(default_factory=deque)
    free_at: float = 0.0
    connected: bool = True
    listens: bool = False
    finished: float = 0.0
    wants: list[Want] = field(default_factory=list)
    came: list[tuple[float, int]] = field(default_factory=list)

    def send(self, block: Block, now: float, rng: random.Random) -> None:
        """A block enters the link's queue."""
        seconds = BLOCK_SIZE / self.rate * (1.0 - self.spread + self.spread * rng.expovariate(1.0))
        self.free_at = max(self.free_at, now) + seconds
        self.queue.append((self.free_at, block))

    def turn(self, ref: FileRef, now: float, rng: random.Random) -> None:
        """Hear what has come through, and let the timer run."""
        if self.finished or now < self.joins:
            return
        if self.state is None:
            self.listens = True
            self.state, effects = download.begin(ref, 0, now, first=self.first)
            self.perform(effects, now)
        self.weather(now)
        if not self.connected:
            return
        while self.queue and self.queue[0][0] + LATENCY <= now and not self.finished:
            _, block = self.queue.popleft()
            self.hear(BlockArrived(block), now)
        due = download.wake_at(self.state)
        if due is not None and due <= now:
            self.hear(Tick(rng.random()), now)

    def weather(self, now: float) -> None:
        """The connection ends, or there is a new one."""
        if self.cuts and now >= self.cuts[0][0] and self.connected:
            self.connected, self.free_at = False, 0.0
            self.queue.clear()
        if self.cuts and now >= self.cuts[0][1]:
            gone, back = self.cuts.pop(0)
            self.connected = True
            self.hear(Reconnected(back - gone), now)

    def hear(self, event: BlockArrived | Reconnected | Tick, now: float) -> None:
        """A step of the machine."""
        assert self.state is not None
        before = self.state.have
        self.state, effects = download.step(self.state, event, now)
        if isinstance(event, BlockArrived) and self.state.have != before:
            self.came.append((now, event.block.index))
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


def simulate(
    file: File,
    boards: list[Board],
    seed: int,
    *,
    absent: int = 0,
    rate: float | None = None,
    gather: float = GATHER,
) -> Counter[str]:
    """Run until all have the file; the blocks sent to each device and to all.

    The server expects all boards, and `absent` more that never ask; `rate` and `gather` are its limits.
    """
    rng, content = random.Random(seed), file.content
    ref = file_ref("weights", content)
    offered = delivery_events.Offered(ref.sha256, file.blocks)
    server, _ = delivery.step(delivery.Delivery(rate=rate, gather=gather), offered, 0.0)
    expected = frozenset([board.name for board in boards] + [f"absent-{number}" for number in range(absent)])
    now, sent, waiting = 0.0, Counter[str](), deque[tuple[float, str, Want]]()
    while not all(board.finished for board in boards):
        assert now < LONGEST, "the fleet did not finish"
        now += STEP
        for board in boards:
            board.turn(ref, now, rng)
            waiting.extend((now + LATENCY, board.name, want) for want in board.wants)
            board.wants.clear()
        while waiting and waiting[0][0] <= now:
            _, name, want = waiting.popleft()
            server, _ = delivery.step(server, delivery_events.Wanted(name, want, expected), now)
        due = delivery.wake_at(server)
        if due is None or due > now:
            continue
        server, effects = delivery.step(server, delivery_events.Tick(1 << 22), now)
        for effect in effects:
            assert isinstance(effect, delivery_events.SendBlocks)
            sent[effect.device] += len(effect.indices)
            for index in effect.indices:
                data = content[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE]
                block = Block(ref.sha256[:16], index, data, slot_of(now))
                for board in boards:
                    if board.connected and (effect.device == board.name or (not effect.device and board.listens)):
                        board.send(block, now, rng)
    return sent
