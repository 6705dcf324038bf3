"""A number that only rises, across restarts."""

from pathlib import Path

from edgefl.store.atomic import write_file


def next_number(path: Path) -> int:
    """One more than last time; 1 when there is no readable last time. It is on disk before it is returned.

    Raises:
        StoreError: the file cannot be written.
    """
    try:
        number = int(path.read_text()) + 1
    except (OSError, ValueError):
        number = 1
    write_file(path, b"%d\n" % number)
    return number
