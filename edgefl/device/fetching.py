"""Fetching the files that the device's models need: the shell around the download machine, with its partial files on disk.

Model: each model says which files it needs and which ways lead to them (`need`); the union of these is fetched, a few at a time.
A file begins with the blocks that are on this device already (`device.reuse`), goes on with those that a source off the broker
has (`device.mirror`), and ends with those that the server sends. For weights that a short difference leads to, the difference is
fetched instead (`device.needs`). A file that is complete and verified moves into the blob store and is handed out by `completed`.
What nobody needs any more is dropped; its blocks stay on disk until `tidy`, so that an order heard twice costs nothing.

Rules: a full or broken disk, a file that contradicts its description, or blocks that come too slowly are a pause for that file
and a reason, never an exception that ends the agent; the pause doubles, and other files go on. Blocks are checked before they are
written and before the file gets its name; a file that is there already is checked before it is handed out.
"""

import contextlib
import random
import ssl
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from edgefl.device.assembly import Assembly
from edgefl.device.download_events import BlockArrived, Event, Reconnected, Tick
from edgefl.device.needs import Needs
from edgefl.device.rests import Rests
from edgefl.device.reuse import BlockIndex
from edgefl.device.supply import Supply
from edgefl.device.waste import Waste
from edgefl.device.ways import BLOCKS_ONLY, Ways
from edgefl.errors import BlockError, EdgeflError, SlowRetrievalError, StoreError
from edgefl.link.contract import Link
from edgefl.store.blobs import BlobStore
from edgefl.store.partial import PartialFile
from edgefl.wire.files import Block, FileRef
from edgefl.wire.messages import decode

AT_ONCE = 4
"""Files fetched side by side."""
ALONE_SECONDS = 3600.0
"""How long a link that has proved too slow for what others ask for is taken to be so."""


class Fetcher:
    """Fetches what the device's models need. Owned by the agent's one thread.

    Args:
        device: id, for the topic of requests.
        link: to the broker.
        blobs: where complete files go.
        partial: directory of incomplete ones.
        reserve: bytes of disk to leave free.
        clock: monotonic seconds.
        rng: of the pauses' jitter.
        context: which web servers are believed as sources; None for the system's certificates.
    """

    def __init__(
        self,
        device: str,
        link: Link,
        blobs: BlobStore,
        partial: Path,
        *,
        reserve: int,
        clock: Callable[[], float],
        rng: random.Random,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._device = device
        self._link = link
        self._blobs = blobs
        self._partial = partial
        self._reserve = reserve
        self._clock = clock
        self._rng = rng
        self._needs = Needs(blobs, partial)
        self._index = BlockIndex(blobs.root, partial)
        self._supply = Supply(clock, context)
        self._active: dict[bytes, Assembly] = {}
        self._there: set[bytes] = set()  # wanted, verified, and handed out
        self._completed: dict[bytes, None] = {}
        self._rests = Rests()
        self._trouble: EdgeflError | None = None
        self._alone_until = 0.0
        self._waste = Waste()
        self._connected_at = clock()

    def need(self, model: str, files: tuple[FileRef, ...], ways: Ways = BLOCKS_ONLY) -> None:
        """Replace what a model needs; what of it is there already is checked, and handed out by `completed` again."""
        self._needs.put(model, files, ways)
        wanted = self._needs.fetched()
        for sha256 in self._active.keys() - wanted.keys():
            self._drop(sha256)
        self._rests = self._rests.only(wanted.keys())
        self._there &= self._needs.files().keys()
        for sha256 in dict.fromkeys(ref.sha256 for ref in files):
            self._there.discard(sha256)
            if sha256 not in self._active and self._blobs.intact(sha256):
                self._hand_out(sha256)
        self._fill()

    def completed(self) -> list[bytes]:
        """Files that have become available since the last call, by SHA-256; those that were there already included."""
        done, self._completed = list(self._completed), {}
        return done

    def failure(self) -> EdgeflError | None:
        """Why a file pauses, told once; None if none does."""
        trouble, self._trouble = self._trouble, None
        return trouble

    def percent(self, model: str) -> int:
        """Share of a model's needed bytes that are there, 0 to 100."""
        total = sum(ref.length for ref in self._needs.of(model))
        return 100 * self.fetched(model) // total if total else 100

    def fetched(self, model: str) -> int:
        """How many of a model's needed bytes are there; of a file that a difference makes, in proportion to the difference."""
        there = 0
        for ref in self._needs.of(model):
            active = self._active.get(self._needs.instead(ref).sha256)
            percent = 100 if ref.sha256 in self._there else active.percent if active else 0
            there += ref.length * percent // 100
        return there

    def arrived(self, payload: bytes) -> None:
        """A block has come. Raises MessageError when it does not decode."""
        block = decode(payload, Block)
        files = {sha256: assembly for sha256, assembly in self._active.items() if sha256.startswith(block.file)}
        useful = any(assembly.listens or not assembly.file.have >> block.index & 1 for assembly in files.values())
        self._waste = self._waste.heard(self._clock(), useful=useful)
        for sha256 in files:
            self._step(sha256, BlockArrived(block))
        if self._waste.too_much(self._clock()):
            self._waste = self._waste.cured(self._clock())
            self._link.restart()

    def reconnected(self) -> None:
        """The link is up again."""
        for sha256 in list(self._active):
            self._step(sha256, Reconnected(self._clock() - self._connected_at))

    def tick(self) -> None:
        """Time has passed."""
        now = self._clock()
        self._take_supplies()
        if self._rests.over(now):
            self._fill()
        if not self._link.connected:
            return
        self._connected_at = now
        for sha256, at in [(sha256, assembly.wake_at) for sha256, assembly in self._active.items()]:
            if at is not None and at <= now:
                self._step(sha256, Tick(self._rng.random()))

    def wait(self) -> float:
        """Seconds until `tick` has something to do. Without a connection no request is ever due."""
        now = self._clock()
        running = self._active.values() if self._link.connected else ()
        times = [at for assembly in running if (at := assembly.wake_at) is not None] + self._rests.ends(now)
        return max(0.0, min(times) - now) if times else 3600.0

    @property
    def wake(self) -> tuple[int, ...]:
        """File descriptors that become readable when `tick` has something to do."""
        return self._supply.wake

    def tidy(self, keep: Iterable[bytes]) -> None:
        """Remove partial files that are neither needed nor to be kept, as far as the disk lets us."""
        names = {sha256.hex() for sha256 in (*keep, *self._needs.fetched(), *self._needs.files())}
        for path in self._partial.glob("*.part"):
            if path.stem not in names:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)

    def close(self) -> None:
        """Stop; what is on disk is used at the next start."""
        self._supply.close()
        for assembly in self._active.values():
            assembly.file.close()
        self._active.clear()

    def _fill(self) -> None:
        """Begin files while there is room."""
        for sha256, ref in self._needs.fetched().items():
            if len(self._active) >= AT_ONCE:
                return
            if sha256 not in self._active and sha256 not in self._there and not self._rests.resting(sha256, self._clock()):
                self._guarded(sha256, partial(self._begin, ref))

    def _begin(self, ref: FileRef) -> bool:
        """Take the room on disk and what is here already, then fetch. Whether the file is complete."""
        file = PartialFile(self._partial, ref, reserve=self._reserve)
        assembly = self._active[ref.sha256] = Assembly(self._device, self._link, file, self._clock)
        assembly.reused = self._index.fill(file, without=self._active.keys())
        return self._go_on(assembly)

    def _go_on(self, assembly: Assembly) -> bool:
        """Fetch what is missing from the next source off the broker, or from the server. Whether the file is complete."""
        ref, have = assembly.file.ref, assembly.file.have
        if not assembly.file.complete and self._supply.begin(self._needs.sources(ref.sha256), ref, have):
            return False
        return assembly.ask_server(alone=self._clock() < self._alone_until, first=self._rng.randrange(len(ref.blocks)))

    def _take_supplies(self) -> None:
        """Write what sources have delivered; where one has ended, go on with the next or with the server."""
        for sha256, blocks, ended in self._supply.take():
            if (assembly := self._active.get(sha256)) is not None:
                self._guarded(sha256, partial(self._write, assembly, blocks, ended=ended))

    def _write(self, assembly: Assembly, blocks: list[tuple[int, bytes]], *, ended: bool) -> bool:
        assembly.write(blocks)
        return ended and self._go_on(assembly)

    def _step(self, sha256: bytes, event: Event) -> None:
        if (assembly := self._active.get(sha256)) is not None:  # it may have ended while others were looked at
            before = assembly.alone
            self._guarded(sha256, partial(assembly.step, event))
            if assembly.alone > before:
                self._alone_until = self._clock() + ALONE_SECONDS

    def _guarded(self, sha256: bytes, work: Callable[[], bool]) -> None:
        """Do it; finish the file if it is complete then, and let it rest if it fails."""
        try:
            if work():
                self._finish(sha256)
        except (StoreError, BlockError, SlowRetrievalError) as error:
            self._drop(sha256)
            self._rests = self._rests.failed(sha256, self._clock())
            self._trouble = error

    def _finish(self, sha256: bytes) -> None:
        self._active[sha256].file.finish(self._blobs.root)
        self._drop(sha256)
        self._rests = self._rests.only(self._needs.fetched().keys() - {sha256})
        if sha256 in self._needs.files():
            self._hand_out(sha256)
        for target in self._needs.rebuilt(sha256, reserve=self._reserve):
            self._hand_out(target)
        self._fill()

    def _hand_out(self, sha256: bytes) -> None:
        self._there.add(sha256)
        self._completed[sha256] = None

    def _drop(self, sha256: bytes) -> None:
        if (assembly := self._active.pop(sha256, None)) is not None:
            assembly.close()
            self._supply.cancel(sha256)
