"""Locks between processes: held on an open file, so that the kernel frees them when their process ends, however it ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgefl.store.atomic import store_error


@contextmanager
def file_lock(path: Path, *, shared: bool = False, wait: bool = True) -> Iterator[bool]:
    """Hold a lock while the block runs.

    Args:
        path: the lock's file, created if needed and never removed; its content means nothing.
        shared: many may hold it shared, or one alone.
        wait: for the others; otherwise the block runs at once, with or without the lock.

    Yields:
        Whether the lock is held; always, after waiting.

    Raises:
        StoreError: the file cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise store_error("lock", path, error) from error
    try:
        yield _lock(path, descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    finally:
        os.close(descriptor)


def _lock(path: Path, descriptor: int, operation: int) -> bool:
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        return False
    except OSError as error:
        raise store_error("lock", path, error) from error
    return True
