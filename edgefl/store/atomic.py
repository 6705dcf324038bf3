"""Files that are whole or not there, whatever happens to the power.

Model: new content is written to a temporary file in the same directory, forced to the disk, and renamed over the old one;
then the directory is forced to the disk, because the rename itself lives there. A reader sees the old bytes or the new bytes,
never a mixture, and after `write_file` has returned the new bytes survive a power cut.

Rules: a temporary file is named `.NAME.RANDOM.tmp`, so that a start-up can remove what a killed process left
(`remove_leftovers`); a failed write leaves the old file as it was and no temporary file.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from edgefl.errors import StoreError

SUFFIX = ".tmp"


def store_error(action: str, path: Path, error: OSError) -> StoreError:
    """What an operating system error means to the person who reads it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(f"cannot {action} {path}: disk full", remedy="Free some space; nothing was half written")
    if error.errno == errno.EROFS:
        return StoreError(f"cannot {action} {path}: the file system is read-only", remedy="Check the disk, then remount it")
    return StoreError(
        f"cannot {action} {path}", found=error.strerror or str(error), remedy="Check the disk and the file's permissions"
    )


def read_file(path: Path) -> bytes:
    """A whole file. Raises StoreError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise store_error("read", path, error) from error


def write_file(path: Path, data: bytes, mode: int = 0o644) -> None:
    """`write_parts` of one part."""
    write_parts(path, (data,), mode)


def write_parts(path: Path, parts: Iterable[bytes | memoryview], mode: int = 0o644) -> None:
    """Replace a file's content, atomically and durably.

    Args:
        path: the file; its directory exists.
        parts: the whole new content, one after the other.
        mode: permission bits, independent of the umask; the temporary file never has more than these.

    Raises:
        StoreError: disk full, read-only, no permission. The old content is untouched and no temporary file is left.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{SUFFIX}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode & 0o600)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.writelines(parts)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise store_error("write", path, error) from error


def replace(src: Path, dst: Path) -> None:
    """Rename a complete, already synchronised file over another in the same file system, durably.

    Raises:
        StoreError: the rename failed; both files are as they were.
    """
    try:
        src.replace(dst)
        sync_directory(dst.parent)
        if src.parent != dst.parent:
            sync_directory(src.parent)
    except OSError as error:
        raise store_error("replace", dst, error) from error


def sync_directory(path: Path) -> None:
    """Force a directory's entries to the disk. Raises OSError, which callers turn into a StoreError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(directory: Path) -> int:
    """Delete temporary files that a killed process left in a directory; how many there were.

    Call it only when no other process writes there.
    """
    count = 0
    for path in directory.glob(f".*{SUFFIX}"):
        with contextlib.suppress(OSError):
            path.unlink()
            count += 1
    return count
