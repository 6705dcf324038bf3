"""A board whose disk is full, or cannot delete: everything is told and late, nothing is lost."""

import contextlib
import errno
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edgefl.device import hands
from edgefl.store import atomic
from edgefl.store.blobs import BlobStore
from toyagent import scripted, trained
from toytrainer import delta_of


@pytest.fixture
def board(tmp_path, monkeypatch):
    """A board that has never heard of any model, with a scripted engine."""
    with scripted(tmp_path, monkeypatch) as board:
        yield board


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def full_disk(monkeypatch):
    """A disk that is full for files whose path holds one of these texts."""
    texts = []
    real_open, real_fallocate, real_pwrite = os.open, os.posix_fallocate, os.pwrite

    def path_of(descriptor):
        return str(Path(f"/proc/self/fd/{descriptor}").readlink())

    def opened(path, flags, *rest, **named):
        if flags & os.O_CREAT and any(text in str(path) for text in texts):
            raise FULL
        return real_open(path, flags, *rest, **named)

    def allocated(descriptor, *rest):
        if any(text in path_of(descriptor) for text in texts):
            raise FULL
        return real_fallocate(descriptor, *rest)

    def written(descriptor, *rest):
        if any(text in path_of(descriptor) for text in texts):
            raise FULL
        return real_pwrite(descriptor, *rest)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "posix_fallocate", allocated)
    monkeypatch.setattr(os, "pwrite", written)
    return texts


@pytest.mark.parametrize("place", ["candidate", "previous", ".part", "order", "outbox"])
def test_a_full_disk_delays_and_loses_nothing(board, full_disk, place):
    """Whichever write fails: it is told, the old version serves, and everything is caught up when there is room again."""
    board.office.manifest()
    trained(board.start(), 1)
    full_disk.append(place)
    board.office.manifest(2)
    board.turns(100, seconds=1.0)
    if place in {"candidate", "previous", ".part"}:
        assert board.active() == 1
        trained_while_full = place != ".part"
    else:
        board.run(lambda: board.active() == 2)
        trained_while_full = False
    board.office.order(5, version=board.active())
    board.turns(60, seconds=1.0)
    assert bool(board.office.updates[5]) == trained_while_full
    assert "disk full" in board.office.errors()[-1]
    assert len(board.office.errors()) < 20
    full_disk.clear()
    board.run(lambda: board.active() == 2, turns=3000, seconds=1.0)
    board.office.order(6, version=2)
    board.run(lambda: board.office.updates[6] and board.session.work is None, turns=3000, seconds=1.0)
    assert len(board.office.sent(6)) == 1


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of half a megabyte, where this user may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_really_full_delays_and_loses_nothing(board, tiny_disk, monkeypatch):
    """A real file system without a byte left, again and again: each round's update still arrives once, and the law holds."""
    monkeypatch.setattr(hands, "RESERVE", 0)
    board.state.symlink_to(tiny_disk)
    ballast = tiny_disk / "ballast"
    board.office.manifest()
    board.start().run(board.active)
    for number in (1, 2, 3):
        with contextlib.suppress(OSError), ballast.open("wb") as file:
            while True:
                file.write(bytes(4096))
        board.office.order(number)
        board.turns(60, seconds=1.0)
        assert board.active() == 1
        assert not board.office.updates[number]
        ballast.unlink()
        board.run(lambda n=number: board.office.updates[n] and board.session.work is None, turns=3000, seconds=1.0)
    sent = sum(board.office.sent(number)[0] for number in (1, 2, 3))
    assert all(len(board.office.sent(number)) == 1 for number in (1, 2, 3))
    np.testing.assert_allclose(sent + board.residual(), sum(delta_of(n) for n in (1, 2, 3)), atol=1e-3)
    assert "disk" in board.office.errors()[0]
    board.agent._hands.close()
    board.agent = None


def test_a_receipt_on_a_full_disk_is_asked_for_again(board, monkeypatch):
    """When the rename to `settled` fails the update stays in the outbox, is sent again, and settled when the disk works."""
    real, broken = atomic.replace, [True]

    def replace(src, dst):
        if broken[0] and dst.name == "settled":
            raise atomic.store_error("replace", dst, OSError(errno.EROFS, "Read-only file system"))
        real(src, dst)

    monkeypatch.setattr("edgefl.store.model_state.replace", replace)
    board.office.manifest()
    board.office.order(1)
    board.start().run(lambda: board.office.updates[1])
    board.turns(100, seconds=1.0)
    assert (board.folder / "outbox").exists()
    assert 2 <= len(board.office.updates[1]) <= 10
    broken[0] = False
    board.run((board.folder / "settled").exists, seconds=1.0)
    assert len(board.office.sent(1)) == 1


def test_what_no_version_needs_makes_room_when_the_disk_is_full(board, monkeypatch):
    """Partial files of a version that was overtaken are removed when a download finds no room."""
    board.office.serves = False
    board.office.manifest(1, graphs={"train": bytes(600_000)})
    board.start().run(lambda: list((board.state / "partial").glob("*.part")))
    overtaken = {path.name for path in (board.state / "partial").glob("*.part")}
    free = os.fstatvfs

    def fstatvfs(descriptor):
        found = free(descriptor)
        left = {path.name for path in (board.state / "partial").glob("*.part")} & overtaken
        return os.statvfs_result((*found[:4], 0, *found[5:])) if left else found

    monkeypatch.setattr(os, "fstatvfs", fstatvfs)
    board.office.manifest(2, graphs={"train": b"smaller"})
    board.office.serves = True
    board.run(lambda: board.active() == 2, turns=3000, seconds=0.5)


def test_a_version_that_does_not_fit_does_not_keep_rounds_from_running(board, monkeypatch):
    """While a new version waits for room, the old one goes on learning."""
    board.office.manifest()
    board.start().run(board.active)
    real = os.posix_fallocate

    def allocate(descriptor, offset, length):
        if length > 500_000:
            raise FULL
        real(descriptor, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", allocate)
    board.office.manifest(2, graphs={"train": bytes(600_000)})
    board.run(board.office.errors)
    for number in (1, 2):
        trained(board, number)
    assert board.active() == 1


def test_a_disk_that_cannot_delete_does_not_keep_rounds_from_running(board, monkeypatch):
    """Tidying up is no reason to stop."""

    def broken(*_):
        raise atomic.store_error("delete", Path("x"), OSError(errno.EIO, "Input/output error"))

    monkeypatch.setattr(BlobStore, "keep_only", broken)
    board.office.manifest()
    board.start()
    for number in (1, 2):
        trained(board, number)
