import errno
import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from edgefl.errors import StoreError
from edgefl.store import atomic
from edgefl.store.atomic import remove_leftovers, replace, write_file
from edgefl.store.blobs import BlobStore


def test_write_file_replaces_the_content_and_sets_the_mode(tmp_path: Path) -> None:
    """The new bytes are there, with the asked mode whatever the umask, and nothing else is in the directory."""
    path = tmp_path / "key"
    write_file(path, b"old", 0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = os.umask(0o077)
    try:
        write_file(path, b"new", 0o644)
    finally:
        os.umask(before)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At whatever step the disk runs full: old content, no temporary file, and an error that says `disk full`."""
    path = tmp_path / "file"
    write_file(path, b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if failing == "replace":
        monkeypatch.setattr(Path, "replace", full)
    else:
        monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(StoreError, match="disk full"):
        write_file(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_directory_is_a_worded_error(tmp_path: Path) -> None:
    """Writing or renaming where there is nothing is a StoreError."""
    with pytest.raises(StoreError, match="nowhere"):
        write_file(tmp_path / "nowhere" / "file", b"x")
    with pytest.raises(StoreError):
        replace(tmp_path / "a", tmp_path / "b")


def test_replace_renames(tmp_path: Path) -> None:
    """The source takes the destination's place."""
    write_file(tmp_path / "a", b"1")
    write_file(tmp_path / "b", b"2")
    replace(tmp_path / "a", tmp_path / "b")
    assert [p.name for p in tmp_path.iterdir()] == ["b"]
    assert (tmp_path / "b").read_bytes() == b"1"


WRITER = """
import sys, itertools
from pathlib import Path
from edgefl.store.atomic import write_file
for i in itertools.count():
    write_file(Path(sys.argv[1]), bytes([i % 251]) * 200_000)
    if i == 3:
        print("going", flush=True)
"""


def test_a_killed_writer_leaves_a_whole_file(tmp_path: Path) -> None:
    """With kill -9 in the middle of rewriting: the file is one of the versions, complete, and leftovers can be removed."""
    path = tmp_path / "file"
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
        process.wait()
        process.stdout.close()
        data = path.read_bytes()
        assert len(data) == 200_000
        assert len(set(data)) == 1
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_blobs_are_named_by_their_content(tmp_path: Path) -> None:
    """What was put comes back under its SHA-256, and is stored once."""
    store = BlobStore(tmp_path / "a" / "blobs")
    sha = store.put(b"hello")
    assert sha == hashlib.sha256(b"hello").digest() == store.put(b"hello")
    assert store.has(sha)
    assert store.path(sha).name == sha.hex()
    assert store.get(sha) == b"hello"
    assert len(list(store.root.iterdir())) == 1
    assert not store.has(bytes(32))


def test_a_damaged_blob_is_never_handed_out(tmp_path: Path) -> None:
    """A flipped bit is found on reading, named with a remedy, and repaired by putting the content again."""
    store = BlobStore(tmp_path)
    sha = store.put(b"hello")
    store.path(sha).write_bytes(b"hellp")
    with pytest.raises(StoreError, match=r"damaged.*Delete the file"):
        store.get(sha)
    store.put(b"hello")
    assert store.get(sha) == b"hello"


def test_ranges_of_a_blob(tmp_path: Path) -> None:
    """A range is cut at the end; impossible ranges and missing blobs are worded errors."""
    store = BlobStore(tmp_path)
    sha = store.put(bytes(range(100)))
    assert store.read_range(sha, 10, 5) == bytes(range(10, 15))
    assert store.read_range(sha, 98, 50) == bytes([98, 99])
    assert store.read_range(sha, 200, 5) == b""
    for call in (lambda: store.read_range(sha, -1, 5), lambda: store.read_range(bytes(32), 0, 5), lambda: store.get(bytes(32))):
        with pytest.raises(StoreError):
            call()


def test_garbage_collection_keeps_what_is_wanted(tmp_path: Path) -> None:
    """Only unwanted blobs go; files that are no blobs stay."""
    store = BlobStore(tmp_path)
    keep, drop = store.put(b"keep"), store.put(b"drop it")
    (tmp_path / "README").write_text("mine")
    assert store.keep_only({keep}) == 7
    assert store.has(keep)
    assert not store.has(drop)
    assert (tmp_path / "README").exists()
