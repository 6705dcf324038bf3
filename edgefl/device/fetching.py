"""Fetching files from the server: the shell around the download machine, with its partial files on disk.

Model: each model says which files it needs (`need`); the union of these is fetched, a few at a time. A file that is complete and
verified moves into the blob store and is handed out by `completed`. A file that nobody needs any more is dropped, its partial
blocks stay on disk until `tidy`, so that an order heard twice costs nothing.

Rules: a full or broken disk, or a file that contradicts its description, is a pause for that file and a reason, never an
exception that ends the agent; the pause doubles, and other files go on. Blocks are checked twice: by the machine before they are
written, by `PartialFile.finish` before the file gets its name. A file that is there already is checked before it is handed out.
"""

import contextlib
import random
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from edgefl.device.download import (
    Ask,
    BlockArrived,
    Complete,
    Download,
    Effect,
    Event,
    Reconnected,
    Reject,
    Store,
    Tick,
    begin,
    step,
    wake_at,
)
from edgefl.errors import BlockError, LinkError, StoreError
from edgefl.link.contract import Link
from edgefl.store.blobs import BlobStore
from edgefl.store.partial import PartialFile
from edgefl.wire import topics
from edgefl.wire.messages import Block, FileRef, decode, encode

AT_ONCE = 4
"""Files fetched side by side."""
PAUSE = 15.0
"""Seconds to wait after the first failure of a file."""
LONGEST_PAUSE = 900.0


@dataclass(slots=True)
class _Active:
    """A download in progress and its file."""

    state: Download
    file: PartialFile


@dataclass(slots=True)
class _Pause:
    """A file that has failed: how often, and until when it rests."""

    failures: int
    until: float


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
    ) -> None:
        self._device = device
        self._link = link
        self._blobs = blobs
        self._partial = partial
        self._reserve = reserve
        self._clock = clock
        self._rng = rng
        self._needs: dict[str, tuple[FileRef, ...]] = {}
        self._active: dict[bytes, _Active] = {}
        self._there: set[bytes] = set()  # wanted, verified, and handed out
        self._completed: list[bytes] = []
        self._pauses: dict[bytes, _Pause] = {}
        self._reason = ""

    def need(self, model: str, files: tuple[FileRef, ...]) -> None:
        """Replace what a model needs; what of it is there already is checked, and handed out by `completed` again."""
        self._needs[model] = files
        wanted = self._wanted()
        for sha256 in [s for s in self._active if s not in wanted]:
            self._drop(sha256)
        self._pauses = {sha256: pause for sha256, pause in self._pauses.items() if sha256 in wanted}
        self._there &= wanted.keys()
        for sha256 in dict.fromkeys(ref.sha256 for ref in files):
            self._there.discard(sha256)
            if sha256 not in self._active and self._blobs.intact(sha256):
                self._hand_out(sha256)
        self._fill()

    def completed(self) -> list[bytes]:
        """Files that have become available since the last call, by SHA-256; those that were there already included."""
        done, self._completed = self._completed, []
        return done

    def failure(self) -> str:
        """Why a file pauses, told once; empty if none does."""
        reason, self._reason = self._reason, ""
        return reason

    def percent(self, model: str) -> int:
        """Share of a model's needed bytes that are there, 0 to 100."""
        total = sum(ref.length for ref in self._needs.get(model, ()))
        there = 0
        for ref in self._needs.get(model, ()):
            if ref.sha256 in self._there:
                there += ref.length
            elif ref.sha256 in self._active:
                there += ref.length * self._active[ref.sha256].state.percent // 100
        return 100 * there // total if total else 100

    def fetched(self, files: Iterable[FileRef]) -> int:
        """Bytes of these files that are there, those of incomplete files included."""
        there = 0
        for ref in files:
            if ref.sha256 in self._active:
                there += ref.length * self._active[ref.sha256].state.percent // 100
            elif self._blobs.has(ref.sha256):
                there += ref.length
        return there

    def arrived(self, payload: bytes) -> None:
        """A block has come. Raises MessageError when it does not decode."""
        block = decode(payload, Block)
        for sha256, active in list(self._active.items()):
            if sha256.startswith(block.file):
                self._step(sha256, active, BlockArrived(block))

    def reconnected(self) -> None:
        """The link is up again."""
        for sha256, active in list(self._active.items()):
            self._step(sha256, active, Reconnected())

    def tick(self) -> None:
        """Time has passed."""
        if any(pause.until <= self._clock() for pause in self._pauses.values()):
            self._fill()
        if not self._link.connected:
            return
        for sha256, active in list(self._active.items()):
            at = wake_at(active.state)
            if at is not None and at <= self._clock():
                self._step(sha256, active, Tick(self._rng.random()))

    def wait(self) -> float:
        """Seconds until `tick` has something to do. Without a connection no request is ever due."""
        running = self._active.values() if self._link.connected else ()
        times = [at for active in running if (at := wake_at(active.state)) is not None]
        now = self._clock()
        times += [pause.until for pause in self._pauses.values() if pause.until > now]
        return max(0.0, min(times) - now) if times else 3600.0

    def tidy(self, keep: AbstractSet[bytes]) -> None:
        """Remove partial files that are neither needed nor to be kept, as far as the disk lets us."""
        names = {sha256.hex() for sha256 in (*keep, *self._wanted())}
        for path in self._partial.glob("*.part"):
            if path.stem not in names:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)

    def close(self) -> None:
        """Stop; what is on disk is used at the next start."""
        for active in self._active.values():
            active.file.close()
        self._active.clear()

    def _wanted(self) -> Mapping[bytes, FileRef]:
        return {ref.sha256: ref for files in self._needs.values() for ref in files}

    def _fill(self) -> None:
        """Begin downloads while there is room."""
        for sha256, ref in self._wanted().items():
            if len(self._active) >= AT_ONCE:
                return
            pause = self._pauses.get(sha256)
            if sha256 in self._active or sha256 in self._there or (pause and pause.until > self._clock()):
                continue
            try:
                file = PartialFile(self._partial, ref, reserve=self._reserve)
            except StoreError as error:
                self._rest(sha256, str(error))
                continue
            state, effects = begin(ref, file.have, self._clock())
            active = self._active[sha256] = _Active(state, file)
            self._link.subscribe(topics.block(sha256.hex()), qos=0)
            self._perform(sha256, active, effects)

    def _step(self, sha256: bytes, active: _Active, event: Event) -> None:
        active.state, effects = step(active.state, event, self._clock())
        self._perform(sha256, active, effects)

    def _perform(self, sha256: bytes, active: _Active, effects: tuple[Effect, ...]) -> None:
        try:
            for effect in effects:
                match effect:
                    case Ask(request):
                        with contextlib.suppress(LinkError):  # no room in the queue: asked again when it is overdue
                            self._link.publish(topics.want(self._device), encode(request), qos=0)
                    case Store(index, data):
                        active.file.write(index, data)
                    case Complete():
                        self._finish(sha256, active)
                    case Reject():
                        pass  # counted by the machine, which asks for the block again
        except (StoreError, BlockError) as error:
            self._drop(sha256)
            self._rest(sha256, str(error))

    def _finish(self, sha256: bytes, active: _Active) -> None:
        active.file.finish(self._blobs.root)
        self._drop(sha256)
        self._pauses.pop(sha256, None)
        self._hand_out(sha256)
        self._fill()

    def _hand_out(self, sha256: bytes) -> None:
        self._there.add(sha256)
        if sha256 not in self._completed:
            self._completed.append(sha256)

    def _drop(self, sha256: bytes) -> None:
        active = self._active.pop(sha256, None)
        if active is not None:
            active.file.close()
            self._link.unsubscribe(topics.block(sha256.hex()))

    def _rest(self, sha256: bytes, reason: str) -> None:
        """Leave a file alone for a while."""
        failures = self._pauses[sha256].failures + 1 if sha256 in self._pauses else 1
        pause = min(LONGEST_PAUSE, PAUSE * 2.0 ** min(failures - 1, 16))
        self._pauses[sha256] = _Pause(failures, self._clock() + pause)
        self._reason = reason
