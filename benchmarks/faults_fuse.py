"""A fuse: it kills the process that carries it, with SIGKILL, at a chosen step of what the process writes to its disk.

Model: whatever changes what would be found after a death passes the fuse: before and after a file is renamed or deleted, before
it is forced to the disk, before a block is written, halfway through it and after it, before and after a transaction commits. Each
such *boundary* has a name: who (`device`, `trainer`, `server`), what, and on which kind of file or by which function. A process
that dies writes the name into a file that all share, so that the next one knows which boundaries have had their share of deaths.

Rules: it lives in the benchmark only; what it wraps does its work unchanged. A boundary that has had fewer deaths than the quota
is fatal every other time, any other one never.
"""

import os
import random
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from edgefl.store.database import Database

VARIABLE = "EDGEFL_FAULTS_FUSE"
"""Environment variable that hands a fuse on to the trainer: file, quota and root."""
_TEMPORARY = re.compile(r"^\.(.+)\.[0-9a-f]{8}\.tmp$")
_HASH = re.compile(r"[0-9a-f]{32,}")
_PASSED_OVER = ("contextlib.py", "database.py", "faults_fuse.py")


def deaths(file: Path) -> Counter[str]:
    """How often each boundary has been fatal."""
    return Counter(file.read_text().splitlines()) if file.exists() else Counter()


class Fuse:
    """One process's fuse.

    Args:
        role: of the process.
        file: where deaths are written down.
        quota: deaths of one boundary.
        root: only files below this directory count.
    """

    def __init__(self, role: str, file: Path, quota: int, root: Path) -> None:
        self._role = role
        self._file = file
        self._quota = quota
        self._root = str(root.resolve())
        self._deaths = deaths(file)
        self._rng = random.Random()  # noqa: S311 - no secret

    def hand_on(self) -> None:
        """Let the processes that this one starts find it (`handed_on`)."""
        os.environ[VARIABLE] = "\n".join((str(self._file), str(self._quota), self._root))

    @classmethod
    def handed_on(cls, role: str) -> "Fuse":
        """The fuse that the parent process has left."""
        file, quota, root = os.environ[VARIABLE].split("\n")
        return cls(role, Path(file), int(quota), Path(root))

    def install(self) -> None:
        """Lay it through everything that writes."""
        self._around_path("replace")
        self._around_path("unlink")
        self._around_write()
        self._before_sync()
        self._around_commit()

    def burn(self, what: str, where: str) -> None:
        """A boundary."""
        name = f"{self._role} {what} {where}"
        if self._deaths[name] < self._quota and self._rng.random() < 0.5:
            self.die(name)

    def die(self, name: str) -> None:
        """Write it down and die."""
        file = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(file, f"{name}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)
        signal.pause()  # the signal may take a moment

    def _kind(self, path: str) -> str:
        """Which kind of file this is; empty for one that is none of ours."""
        if not path.startswith(self._root):
            return ""
        *folders, name = Path(path).parts[-3:]
        if found := _TEMPORARY.match(name):
            name = f"{found[1]} (temporary)"
        folder = "partial/" if "partial" in folders else "blobs/" if "blobs" in folders else ""
        return folder + _HASH.sub("*", name)

    def _around_path(self, name: str) -> None:
        real: Callable[..., Any] = getattr(Path, name)

        def fused(path: Path, *arguments: Any, **named: Any) -> Any:
            kind = self._kind(str(arguments[0] if arguments else path))
            if kind:
                self.burn(f"before {name}", kind)
            result = real(path, *arguments, **named)
            if kind:
                self.burn(f"after {name}", kind)
            return result

        setattr(Path, name, fused)

    def _around_write(self) -> None:
        real = os.pwrite

        def fused(descriptor: int, data: Any, offset: int, /) -> int:
            kind = self._kind(_path_of(descriptor))
            if kind:
                self.burn("before write", kind)
                if self._deaths[f"{self._role} torn write {kind}"] < self._quota and self._rng.random() < 0.1:
                    real(descriptor, bytes(data)[: len(data) // 2], offset)
                    self.die(f"{self._role} torn write {kind}")
            count = real(descriptor, data, offset)
            if kind:
                self.burn("after write", kind)
            return count

        os.pwrite = fused

    def _before_sync(self) -> None:
        real = os.fsync

        def fused(descriptor: Any) -> None:
            if isinstance(descriptor, int) and (kind := self._kind(_path_of(descriptor))):
                self.burn("before sync", kind)
            real(descriptor)

        os.fsync = fused  # type: ignore[assignment] # what a fuse is for

    def _around_commit(self) -> None:
        real = Database.__exit__
        fuse = self

        def fused(
            database: Database, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
        ) -> Any:
            if kind is not None or not database.in_transaction:
                return real(database, kind, error, trace)
            who = _caller()
            fuse.burn("before commit", who)
            result = real(database, kind, error, trace)
            fuse.burn("after commit", who)
            return result

        Database.__exit__ = fused  # type: ignore[method-assign] # what a fuse is for


def _path_of(descriptor: int) -> str:
    try:
        return str(Path(f"/proc/self/fd/{descriptor}").readlink())
    except OSError:
        return ""


def _caller() -> str:
    """Name of the function whose transaction this is."""
    frame = sys._getframe(1)  # noqa: SLF001 - the one way to look up the stack without making a traceback
    while frame.f_back is not None and frame.f_code.co_filename.endswith(_PASSED_OVER):
        frame = frame.f_back
    return frame.f_code.co_name
