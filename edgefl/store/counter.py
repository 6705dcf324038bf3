"""A number that only rises, across restarts."""

from pathlib import Path

from edgefl.store.atomic import write_file

LARGEST = 1 << 53
"""What a message can carry; a file that says more is damaged."""


def next_number(path: Path) -> int:
    """One more than last time; 1 when there is no usable last time. It is on disk before it is returned.

    Raises:
        StoreError: the file cannot be written.
    """
    try:
        number = int(path.read_text()) + 1
    except (OSError, ValueError):
        number = 1
    if not 1 <= number <= LARGEST:
        number = 1
    write_file(path, b"%d\n" % number)
    return number
