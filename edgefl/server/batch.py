"""A batch of devices from a CSV file: one line each, and a mistake names its line and column.

    id,profile,data,tags
    cam-01,rpi-zero-2w,npz:/var/lib/sensor/examples.npz,roof north
    cam-02,rpi-4b-2gb,,

`id` and `profile` are needed; `data` and `tags` (separated by spaces) may be missing. The file is UTF-8, with or without a byte
order mark, separated by commas as RFC 4180 says. Nothing is guessed: an unknown column is a mistake.
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from edgefl.errors import InputError
from edgefl.names import check_id
from edgefl.server.enrolment import Order

COLUMNS = ("id", "profile", "data", "tags")
NEEDED = COLUMNS[:2]
MAX_BYTES = 4 << 20
MOST_DEVICES = 10_000
MOST_TAGS = 32
LONGEST_DATA = 500


def read_batch(path: Path) -> list[Order]:
    """The devices in a CSV file.

    Raises:
        InputError: the file cannot be read, is too large, or has a mistake; the text names line and column.
    """
    rows = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        header = [name.strip() for name in next(rows, [])]
        _check_header(path, header)
        lines: dict[str, tuple[int, Order]] = {}
        for row in rows:
            if any(cell.strip() for cell in row):
                order = _order(path, rows.line_num, header, row)
                _check_new(path, rows.line_num, order, lines)
                lines[order.id] = (rows.line_num, order)
    except csv.Error as error:
        raise InputError(f"{path} line {rows.line_num} is no CSV", found=str(error), remedy="Correct the line") from None
    if not 1 <= len(lines) <= MOST_DEVICES:
        raise InputError(f"{path} names no usable number of devices", expected=f"1 to {MOST_DEVICES}", found=str(len(lines)))
    return [order for _, order in lines.values()]


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read", found=error.strerror or str(error), remedy="Check the path") from None
    if len(raw) > MAX_BYTES:
        raise InputError(f"{path} is too long", expected=f"at most {MAX_BYTES} bytes", remedy="Split it")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InputError(f"{path} line {line} is no UTF-8 text", remedy="Save the file as UTF-8") from None


def _check_header(path: Path, header: list[str]) -> None:
    for number, name in enumerate(header, start=1):
        if name not in COLUMNS or name in header[: number - 1]:
            raise InputError(
                f"{path} line 1 column {number} cannot be used",
                expected=f"each of {', '.join(COLUMNS)} once",
                found=repr(name)[:60],
                remedy="Name the columns in the first line",
            )
    missing = [name for name in NEEDED if name not in header]
    if missing:
        raise InputError(
            f"{path} line 1 lacks a column", expected=", ".join(missing), remedy="Name the columns in the first line"
        )


def _order(path: Path, line: int, header: list[str], row: list[str]) -> Order:
    if len(row) > len(header):
        raise InputError(
            f"{path} line {line} column {len(header) + 1}: more cells than columns",
            expected=str(len(header)),
            found=str(len(row)),
        )
    cells = {name: cell.strip() for name, cell in zip(header, row, strict=False)}
    tags = tuple(dict.fromkeys(cells.get("tags", "").split()))
    for name, problem in _mistakes(cells, tags):
        raise InputError(f"{path} line {line} column {name!r}: {problem.problem}", expected=problem.expected, remedy="Correct it")
    return Order(cells["id"], cells["profile"], cells.get("data", ""), tags)


def _mistakes(cells: dict[str, str], tags: tuple[str, ...]) -> Iterator[tuple[str, InputError]]:
    """What is wrong with a line, by column."""
    words = {"id": "device id", "profile": "profile name"}
    checked = [*((name, cells.get(name, ""), what) for name, what in words.items()), *(("tags", tag, "tag") for tag in tags)]
    for column, value, what in checked:
        try:
            check_id(value, what)
        except InputError as error:
            yield column, error
    if len(tags) > MOST_TAGS:
        yield "tags", InputError("too many tags", expected=f"at most {MOST_TAGS}")
    data = cells.get("data", "")
    if len(data) > LONGEST_DATA or not data.isprintable():
        yield "data", InputError("no source of examples", expected=f"at most {LONGEST_DATA} printable characters")


def _check_new(path: Path, line: int, order: Order, lines: dict[str, tuple[int, Order]]) -> None:
    if order.id in lines:
        found = f"{order.id}, as in line {lines[order.id][0]}"
        raise InputError(
            f"{path} line {line} column 'id': the same device twice", found=found, remedy="Give each board an id of its own"
        )
