"""Bytes kept by what they are: a directory of files, each named by the SHA-256 of its content.

Model: the name is the promise. Putting the same bytes twice stores them once; a file that no longer matches its name is damaged
and is never handed out. Nothing is ever changed in place, so a copy of the directory is a backup.

Rules: `get` checks the hash on every read; `read_range` does not (its readers check each block against a believed description);
`keep_only` deletes what is not wanted and `intact` what is damaged, nothing else deletes.
"""

import contextlib
import hashlib
from collections.abc import Set as AbstractSet
from pathlib import Path

from edgefl.errors import StoreError
from edgefl.store.atomic import store_error, write_file


class BlobStore:
    """A directory of content-addressed files. Hashes are the 32 raw bytes of a SHA-256."""

    def __init__(self, root: Path) -> None:
        """Open the store, creating the directory. Raises StoreError when that fails."""
        self.root = root
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise store_error("create", root, error) from error

    def path(self, sha256: bytes) -> Path:
        """Where the blob is, or would be."""
        return self.root / sha256.hex()

    def has(self, sha256: bytes) -> bool:
        """Whether the blob is there; its content is checked when it is read."""
        return self.path(sha256).is_file()

    def intact(self, sha256: bytes) -> bool:
        """Whether the blob is there and its content matches; a damaged one is deleted, so that it can be fetched again.

        It is read in pieces: memory does not grow with it.
        """
        path = self.path(sha256)
        try:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").digest() == sha256:
                    return True
            path.unlink()
        except OSError:
            return False  # missing, or a disk that fails: whoever writes the blob next will say so
        return False

    def put(self, data: bytes) -> bytes:
        """Store bytes durably and return their SHA-256. A damaged file of that name is replaced.

        Raises:
            StoreError: the disk is full or cannot be written.
        """
        sha256 = hashlib.sha256(data).digest()
        path = self.path(sha256)
        with contextlib.suppress(OSError):
            if path.stat().st_size == len(data) and hashlib.sha256(path.read_bytes()).digest() == sha256:
                return sha256
        write_file(path, data)
        return sha256

    def get(self, sha256: bytes) -> bytes:
        """The blob's bytes, verified.

        Raises:
            StoreError: the blob is missing, unreadable or damaged.
        """
        path = self.path(sha256)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise self._missing(sha256) from None
        except OSError as error:
            raise store_error("read", path, error) from error
        if hashlib.sha256(data).digest() != sha256:
            raise StoreError(
                f"blob {path} is damaged",
                expected=f"content with SHA-256 {sha256.hex()[:16]}",
                found=hashlib.sha256(data).hexdigest()[:16],
                remedy="Delete the file, then restore it from a backup, or push or fetch the model again",
            )
        return data

    def read_range(self, sha256: bytes, offset: int, length: int) -> bytes:
        """At most `length` bytes from `offset`; fewer at the end of the blob. Not verified: check what you read.

        Raises:
            StoreError: the blob is missing or unreadable, or the range is negative.
        """
        if offset < 0 or length < 0:
            raise StoreError(f"impossible range of blob {sha256.hex()[:16]}", found=f"offset {offset}, length {length}")
        path = self.path(sha256)
        try:
            with path.open("rb") as file:
                file.seek(offset)
                return file.read(length)
        except FileNotFoundError:
            raise self._missing(sha256) from None
        except OSError as error:
            raise store_error("read", path, error) from error

    def keep_only(self, wanted: AbstractSet[bytes]) -> int:
        """Delete every blob that is not wanted; how many bytes that freed.

        Files that are no blobs (another name) are left alone.

        Raises:
            StoreError: a file cannot be deleted.
        """
        names = {sha256.hex() for sha256 in wanted}
        freed = 0
        for path in self.root.iterdir():
            if path.name in names or not _is_name(path.name):
                continue
            try:
                size = path.stat().st_size
                path.unlink()
            except OSError as error:
                raise store_error("delete", path, error) from error
            freed += size
        return freed

    @staticmethod
    def _missing(sha256: bytes) -> StoreError:
        return StoreError(f"blob {sha256.hex()[:16]} is not in the store", remedy="Push or fetch the model again")


def _is_name(name: str) -> bool:
    return len(name) == 64 and all(c in "0123456789abcdef" for c in name)
