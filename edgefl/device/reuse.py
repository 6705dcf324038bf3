"""Blocks that are on this device already: in files of older versions, of other models, and in files that were never finished.

Model: a new version often shares blocks with an old one: graphs that are the same, weights that were frozen. The hashes of the
blocks of every file here are computed when they are first wanted, and kept as bare hashes, in order. A block that a new file
lacks and another file has is copied, and checked like any other when it is written.

Rules:

* A file is read once, and again only if it has changed. One look reads at most `MOST_READ` bytes, so that the agent is not away
  for long; what was not read then is read for the next file.
* Memory is 16 bytes for each block of 32 KiB, and at most `MOST_KNOWN` blocks: 1 MiB for 2 GiB of files.
* Blocks are found at multiples of `BLOCK_SIZE` only: weights of one layout lie at the same places in each version.
"""

import contextlib
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path

from edgefl.store.partial import PartialFile
from edgefl.wire.blocks import block_hash, block_length
from edgefl.wire.files import BLOCK_SIZE

MOST_READ = 64 << 20
MOST_KNOWN = 1 << 16
_HASH = 16

_Key = tuple[Path, int, int]


class BlockIndex:
    """Finds blocks in directories of files.

    Args:
        directories: where to look; they need not exist.
    """

    def __init__(self, *directories: Path) -> None:
        self._directories = directories
        self._known: dict[_Key, bytes] = {}

    def fill(self, file: PartialFile, *, without: AbstractSet[bytes]) -> int:
        """Copy into a file what it lacks and others have; how many blocks.

        Args:
            file: to be completed.
            without: SHA-256 of the files that are being written now.

        Raises:
            StoreError: the file cannot be written.
        """
        missing: dict[bytes, list[int]] = {}
        for index, promised in enumerate(file.ref.blocks):
            if not file.have >> index & 1:
                missing.setdefault(promised, []).append(index)
        copied, left, seen = 0, MOST_READ, set()
        for key in self._files({f"{sha256.hex()}.part" for sha256 in without}) if missing else ():
            seen.add(key)
            if key not in self._known and left > 0 and sum(map(len, self._known.values())) < MOST_KNOWN * _HASH:
                left -= key[1]
                self._known[key] = _hashes(key[0])
            for place, found in enumerate(_split(self._known.get(key, b""))):
                for index in missing.pop(found, ()):
                    copied += _copy(key[0], place, file, index)
            if not missing:
                return copied
        self._known = {key: hashes for key, hashes in self._known.items() if key in seen}
        return copied

    def _files(self, without: AbstractSet[str]) -> Iterator[_Key]:
        """Files as they are now: path, size, time of the last change."""
        for directory in self._directories:
            with contextlib.suppress(OSError):
                for path in sorted(directory.iterdir()):
                    if path.name not in without and not path.name.startswith(".") and path.is_file():
                        status = path.stat()
                        yield path, status.st_size, status.st_mtime_ns


def _hashes(path: Path) -> bytes:
    """Hashes of a file's blocks; what cannot be read has none."""
    found = bytearray()
    with contextlib.suppress(OSError), path.open("rb") as file:
        while data := file.read(BLOCK_SIZE):
            found += block_hash(data)
    return bytes(found)


def _split(hashes: bytes) -> Iterator[bytes]:
    return (hashes[start : start + _HASH] for start in range(0, len(hashes), _HASH))


def _copy(path: Path, place: int, file: PartialFile, index: int) -> int:
    """Copy a block if it still is what it was; 1 if so."""
    length = block_length(file.ref, index)
    try:
        with path.open("rb") as other:
            other.seek(place * BLOCK_SIZE)
            data = other.read(length)
    except OSError:
        return 0
    if len(data) != length or block_hash(data) != file.ref.blocks[index]:
        return 0
    file.write(index, data)
    return 1
