"""A file that is still being fetched: one file on disk, with room for all its blocks.

Model: `HEX.part`, where HEX is the file's SHA-256. A block is written where it belongs, in any order. Which blocks are there is
not written down anywhere: the description holds a hash of every block, so on opening each place is hashed, and what matches is
there. A torn write, a flipped bit or a lost sync is thereby found, no good block is ever fetched twice, and there is no second
file that could disagree with the first. It costs one pass of reading and hashing at each start.

Rules:

* The whole room is allocated at the beginning, so that a full disk is found before the download and not during it.
* Data is forced to the disk once per MiB; a power cut costs at most that much.
* `finish` hashes the whole file once more before it gets its final name; nothing unverified ever has that name.
* One process, one `PartialFile` per file; memory is one block and the bitmap.
"""

import hashlib
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from edgefl.errors import BlockError, StoreError
from edgefl.store.atomic import replace, store_error, sync_directory
from edgefl.wire.blocks import block_hash, block_length, check_block, check_ref
from edgefl.wire.files import BLOCK_SIZE, FileRef

RESERVE = 64 << 20
"""Bytes that are left free for everybody else."""
SYNC_EVERY = 32
"""Blocks between two synchronisations: 1 MiB."""


class PartialFile:
    """A file being assembled on disk.

    Attributes:
        ref: its description.
        have: bitmap of the blocks that are there and good: bit i stands for block i.
    """

    def __init__(self, directory: Path, ref: FileRef, *, reserve: int = RESERVE) -> None:
        """Open what is there, or begin; every block that counts as there has been verified.

        Args:
            directory: where the file lives; it is created if needed. In the file system of the final place.
            ref: the file's description, from a verified manifest.
            reserve: bytes that must stay free on the disk.

        Raises:
            StoreError: not enough space, or the disk cannot be written.
            MessageError: the description contradicts itself.
        """
        self.ref = check_ref(ref)
        self._data = directory / f"{ref.sha256.hex()}.part"
        self._unsynced = 0
        self._file = -1
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._data, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fresh = self._allocate(reserve)
            self.have = 0 if fresh else self._verified()
        except (OSError, StoreError) as error:
            self.close()
            if isinstance(error, OSError):
                raise store_error("open", self._data, error) from error
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def complete(self) -> bool:
        """Whether all blocks are there."""
        return self.have == (1 << len(self.ref.blocks)) - 1

    def write(self, index: int, data: bytes) -> None:
        """Write one block; it counts as there when this returns.

        Raises:
            BlockError: it is not the block that the description promises; nothing was written.
            StoreError: the disk is full or cannot be written.
        """
        check_block(self.ref, index, data)
        try:
            view, offset = memoryview(data), index * BLOCK_SIZE
            while view:
                written = os.pwrite(self._file, view, offset)
                view, offset = view[written:], offset + written
        except OSError as error:
            raise store_error("write", self._data, error) from error
        self.have |= 1 << index
        self._unsynced += 1
        if self._unsynced >= SYNC_EVERY:
            self.sync()

    def sync(self) -> None:
        """Force the blocks written so far to the disk. Raises StoreError."""
        try:
            os.fsync(self._file)
        except OSError as error:
            raise store_error("write", self._data, error) from error
        self._unsynced = 0

    def finish(self, destination: Path) -> Path:
        """Verify the whole file and move it to `destination / HEX`; this object is closed.

        Raises:
            BlockError: blocks are missing or were damaged on disk (fetch again, they are no longer in `have`), or the
                description's hash of the whole contradicts its hashes of the blocks (nothing is kept).
            StoreError: the disk cannot be read or written.
        """
        if not self.complete:
            raise BlockError(f"file {self._data.stem[:16]} is not complete", found=f"{self.have.bit_count()} blocks")
        self.sync()
        try:
            whole = self._hash()
        except OSError as error:
            raise store_error("read", self._data, error) from error
        if whole != self.ref.sha256:
            self._explain_damage()
        final = destination / self.ref.sha256.hex()
        self.close()
        replace(self._data, final)
        return final

    def discard(self) -> None:
        """Give up: remove the file. Raises StoreError."""
        self.close()
        try:
            self._data.unlink(missing_ok=True)
        except OSError as error:
            raise store_error("delete", self._data, error) from error

    def close(self) -> None:
        """Free the descriptor; what was written stays for the next time. Harmless when repeated."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _allocate(self, reserve: int) -> bool:
        """Take the file's whole room; whether the file is new."""
        status, disk = os.fstat(self._file), os.fstatvfs(self._file)
        free = disk.f_bavail * disk.f_frsize
        missing = max(0, self.ref.length - status.st_blocks * 512)
        fresh = status.st_size == 0
        if missing and free < missing + reserve:
            if fresh:
                self._data.unlink(missing_ok=True)
            raise StoreError(
                f"not enough disk space for a file of {self.ref.length} bytes below {self._data.parent}",
                expected=f"{missing + reserve} bytes free, {reserve} of them as a reserve",
                found=f"{free}",
                remedy="Free some space, or choose a smaller profile",
            )
        try:
            os.posix_fallocate(self._file, 0, self.ref.length)
            os.ftruncate(self._file, self.ref.length)
        except OSError:
            if fresh:
                self._data.unlink(missing_ok=True)
            raise
        sync_directory(self._data.parent)
        return fresh

    def _verified(self) -> int:
        """The blocks whose bytes hold."""
        good = 0
        for index, promised in enumerate(self.ref.blocks):
            data = os.pread(self._file, block_length(self.ref, index), index * BLOCK_SIZE)
            if block_hash(data) == promised:
                good |= 1 << index
        return good

    def _hash(self) -> bytes:
        digest = hashlib.sha256()
        for offset in range(0, self.ref.length, BLOCK_SIZE):
            digest.update(os.pread(self._file, BLOCK_SIZE, offset))
        return digest.digest()

    def _explain_damage(self) -> None:
        """The whole does not hold: either a block was damaged on disk, or the description is wrong."""
        name = self._data.stem[:16]
        try:
            self.have = self._verified()
        except OSError as error:
            raise store_error("read", self._data, error) from error
        if self.complete:
            self.discard()
            raise BlockError(f"file {name} has good blocks but a wrong hash", remedy="Push the model again")
        lost = len(self.ref.blocks) - self.have.bit_count()
        raise BlockError(f"file {name} was damaged on disk", found=f"{lost} bad blocks", remedy="Fetch them again")
