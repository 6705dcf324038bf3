"""The partial file: what survives kills, torn writes and flipped bits, and what never gets a final name."""

import hashlib
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from edgefl.errors import BlockError, MessageError, StoreError
from edgefl.store.partial import PartialFile
from edgefl.wire.blocks import block_length, file_ref
from edgefl.wire.files import BLOCK_SIZE, FileRef

CONTENT = random.Random(3).randbytes(9 * BLOCK_SIZE + 77)
REF = file_ref("weights", CONTENT)
COUNT = len(REF.blocks)
KILLED = """
import sys
from pathlib import Path
from edgefl.store.partial import PartialFile
from edgefl.wire.blocks import file_ref
from edgefl.wire.files import BLOCK_SIZE
import random, time
content = random.Random(3).randbytes(9 * BLOCK_SIZE + 77)
partial = PartialFile(Path(sys.argv[1]), file_ref("weights", content), reserve=0)
for index in (0, 1, 5, 9):
    partial.write(index, content[index * BLOCK_SIZE :][:BLOCK_SIZE])
print("written", flush=True)
time.sleep(60)
"""


def piece(index: int) -> bytes:
    """A good block's bytes."""
    return CONTENT[index * BLOCK_SIZE :][: block_length(REF, index)]


def open_partial(directory: Path) -> PartialFile:
    """Open with no reserve."""
    return PartialFile(directory, REF, reserve=0)


def fill(partial: PartialFile) -> None:
    """Write what is missing, last block first."""
    for index in reversed(range(COUNT)):
        if not partial.have >> index & 1:
            partial.write(index, piece(index))


def test_finished_file_has_its_name_and_content(tmp_path: Path) -> None:
    """Written in any order, the file ends up under its hash with its content, and nothing else is left."""
    (tmp_path / "blobs").mkdir()
    partial = open_partial(tmp_path / "part")
    fill(partial)
    final = partial.finish(tmp_path / "blobs")
    assert final == tmp_path / "blobs" / hashlib.sha256(CONTENT).hexdigest()
    assert final.read_bytes() == CONTENT
    assert list((tmp_path / "part").iterdir()) == []


def test_killed_process_loses_no_block(tmp_path: Path) -> None:
    """After kill -9 every block that was written is still there, and no other."""
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        process.kill()
    with open_partial(tmp_path) as partial:
        assert partial.have == 1 << 0 | 1 << 1 | 1 << 5 | 1 << 9


@pytest.mark.parametrize("damage", ["flip", "zero", "truncate", "longer"])
def test_damage_is_found_and_only_the_damaged_block_is_lost(tmp_path: Path, damage: str) -> None:
    """A flipped bit, a zeroed block or a cut end costs exactly the blocks it hit."""
    with open_partial(tmp_path) as partial:
        fill(partial)
    (path,) = tmp_path.iterdir()
    data = bytearray(CONTENT)
    match damage:
        case "flip":
            data[2 * BLOCK_SIZE + 5] ^= 1
            lost = {2}
        case "zero":
            data[4 * BLOCK_SIZE : 5 * BLOCK_SIZE] = bytes(BLOCK_SIZE)
            lost = {4}
        case "truncate":
            del data[-100:]
            lost = {8, 9}
        case _:
            data += b"more"
            lost = set()
    path.write_bytes(data)
    with open_partial(tmp_path) as partial:
        assert {index for index in range(COUNT) if not partial.have >> index & 1} == lost
        fill(partial)
        assert partial.finish(tmp_path).read_bytes() == CONTENT


def test_damage_after_the_last_block_never_gets_the_name(tmp_path: Path) -> None:
    """A bit that flips on disk before `finish` is found there; the damaged block is missing again, and fetching it helps."""
    partial = open_partial(tmp_path)
    fill(partial)
    (path,) = tmp_path.iterdir()
    with path.open("r+b") as file:
        file.seek(3 * BLOCK_SIZE)
        file.write(b"\0\1\2\3")
    with pytest.raises(BlockError, match="damaged on disk"):
        partial.finish(tmp_path)
    assert partial.have == ((1 << COUNT) - 1) & ~(1 << 3)
    fill(partial)
    assert partial.finish(tmp_path).read_bytes() == CONTENT


def test_contradicting_description_keeps_nothing(tmp_path: Path) -> None:
    """Good blocks under a wrong whole hash are a BlockError, and the file is gone."""
    lie = msgspec.structs.replace(REF, sha256=bytes(32))
    partial = PartialFile(tmp_path, lie, reserve=0)
    for index in range(COUNT):
        partial.write(index, piece(index))
    with pytest.raises(BlockError, match="wrong hash"):
        partial.finish(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(MessageError):
        PartialFile(tmp_path, msgspec.structs.replace(REF, length=1), reserve=0)


def test_bad_blocks_are_not_written(tmp_path: Path) -> None:
    """A block that does not hold is refused before it touches the file; an incomplete file cannot be finished."""
    with open_partial(tmp_path) as partial:
        for index, data in ((0, piece(1)), (COUNT, piece(0)), (-1, piece(0)), (0, piece(0) + b"x")):
            with pytest.raises(BlockError):
                partial.write(index, data)
        assert partial.have == 0
        with pytest.raises(BlockError, match="not complete"):
            partial.finish(tmp_path)
    assert set((tmp_path / f"{REF.sha256.hex()}.part").read_bytes()) == {0}


def test_full_disk_is_found_before_the_download(tmp_path: Path) -> None:
    """A file that would eat into the reserve is refused with the numbers, and leaves nothing behind."""
    disk = os.statvfs(tmp_path)
    with pytest.raises(StoreError, match="not enough disk space"):
        PartialFile(tmp_path, REF, reserve=disk.f_bavail * disk.f_frsize)
    assert list(tmp_path.iterdir()) == []


def test_space_is_taken_once(tmp_path: Path) -> None:
    """A file whose room is already allocated can be reopened on a disk that has become full since."""
    with open_partial(tmp_path) as partial:
        partial.write(0, piece(0))
    disk = os.statvfs(tmp_path)
    with PartialFile(tmp_path, REF, reserve=disk.f_bavail * disk.f_frsize) as partial:
        assert partial.have == 1


def test_unusable_directory_is_a_store_error(tmp_path: Path) -> None:
    """A file where the directory should be is a StoreError."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError):
        open_partial(tmp_path / "file")


def test_closed_and_discarded(tmp_path: Path) -> None:
    """Writing after closing is a StoreError; discarding removes the file."""
    partial = open_partial(tmp_path)
    partial.close()
    partial.close()
    with pytest.raises(StoreError):
        partial.write(0, piece(0))
    partial.discard()
    assert list(tmp_path.iterdir()) == []


def test_large_file_needs_no_memory(tmp_path: Path) -> None:
    """A file of 64 MiB is assembled, reopened and finished by a process that never holds more than a few MiB more."""
    program = (
        "import resource, sys\nfrom pathlib import Path\nfrom edgefl.store.partial import PartialFile\n"
        "from edgefl.wire.blocks import block_hash\nfrom edgefl.wire.files import BLOCK_SIZE, FileRef\nimport hashlib\n"
        "n = 2048\ndigest = hashlib.sha256()\nhashes = []\n"
        "block = lambda i: i.to_bytes(4, 'big') * (BLOCK_SIZE // 4)\n"
        "for i in range(n):\n    digest.update(block(i)); hashes.append(block_hash(block(i)))\n"
        "ref = FileRef('weights', digest.digest(), n * BLOCK_SIZE, tuple(hashes))\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "partial = PartialFile(Path(sys.argv[1]), ref, reserve=0)\n"
        "for i in range(n):\n    partial.write(i, block(i))\n"
        "partial.close()\npartial = PartialFile(Path(sys.argv[1]), ref, reserve=0)\nassert partial.complete\n"
        "partial.finish(Path(sys.argv[1]))\nprint(peak() - before)\n"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 4 << 10  # KiB
    assert time.monotonic() - started < 60


def test_one_block_file(tmp_path: Path) -> None:
    """The smallest file, one byte, works like any other."""
    ref: FileRef = file_ref("weights", b"!")
    with PartialFile(tmp_path, ref, reserve=0) as partial:
        partial.write(0, b"!")
        assert partial.finish(tmp_path).read_bytes() == b"!"
