"""A sheet of labels to print, one for each board: what it is, and a QR code that holds its claim.

Three forms, chosen by the file's name: `.html` (with print rules, for a browser), `.svg` (one picture), `.txt` (for a terminal or
a line printer). Nothing is loaded from elsewhere, so that a sheet of secrets stays one file.

Rule: every text is escaped, whatever made it; the file is readable by its owner only, because whoever reads a code can claim.
"""

import datetime as dt
import html
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from edgefl.device.claimcode import claim_code
from edgefl.errors import InputError
from edgefl.server.enrolment import Provisioned
from edgefl.store.atomic import write_file

WIDTH, HEIGHT, COLUMNS = 320, 130, 2
"""Of one label in an SVG, in units of a pixel at 96 to the inch, and how many stand side by side."""
CODE = 110

STYLE = """
body { font: 10pt sans-serif; margin: 8mm; }
ul { display: grid; grid-template-columns: repeat(2, 86mm); gap: 4mm; list-style: none; margin: 0; padding: 0; }
li { border: 0.3mm solid #000; border-radius: 2mm; display: flex; gap: 3mm; padding: 2mm; break-inside: avoid; }
svg { flex: none; height: 30mm; width: 30mm; }
b { font-size: 13pt; } p { margin: 0 0 1mm; overflow-wrap: anywhere; }
"""


@dataclass(frozen=True, slots=True)
class Label:
    """The lines of one label, and what its code holds."""

    lines: tuple[str, ...]
    code: str


def label_of(fleet: str, made: Provisioned) -> Label:
    """The label of a board: id, profile, fleet, and until when it may claim."""
    device, claim = made.device, made.claim
    if claim is None:
        return Label((device.id, device.profile, f"fleet {fleet}", "ready bundle"), f"edgefl://device/{fleet}/{device.id}")
    ends = dt.datetime.fromtimestamp(claim.expires, dt.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return Label((device.id, device.profile, f"fleet {fleet}", f"claim by {ends}"), claim_code(fleet, device.id, claim))


def sheet_form(path: Path) -> Callable[[Sequence[Label]], str]:
    """What draws the sheet for a file of this name.

    Raises:
        InputError: another ending, the file exists, or the library for QR codes is not installed.
    """
    form = FORMS.get(path.suffix.lower())
    if form is None:
        raise InputError(f"labels cannot be written as {path.name}", expected=" or ".join(FORMS), remedy="Choose one of these")
    if path.exists():
        raise InputError(f"{path} exists already", remedy="Choose another file for the labels")
    try:
        import segno  # noqa: F401, PLC0415 - only a server that prints labels has it
    except ImportError:
        raise InputError("QR codes need the library segno", remedy="Install edgefl-fleet[server]") from None
    return form


def write_sheet(path: Path, form: Callable[[Sequence[Label]], str], labels: Sequence[Label]) -> None:
    """Write the sheet, mode 0600. Raises StoreError."""
    write_file(path, form(labels).encode(), 0o600)


def _html(labels: Sequence[Label]) -> str:
    items = []
    for label in labels:
        first, *rest = (html.escape(line) for line in label.lines)
        text = f"<p><b>{first}</b></p>" + "".join(f"<p>{line}</p>" for line in rest)
        items.append(f"<li>{_picture(label.code)}<div>{text}</div></li>")
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Labels</title><style>{STYLE}</style>'
    return f"{head}<ul>\n" + "\n".join(items) + "\n</ul></html>\n"


def _svg(labels: Sequence[Label]) -> str:
    rows = -(-len(labels) // COLUMNS)
    parts = []
    for number, label in enumerate(labels):
        x, y = WIDTH * (number % COLUMNS), HEIGHT * (number // COLUMNS)
        parts.append(
            f'<g transform="translate({x} {y})"><rect width="{WIDTH - 6}" height="{HEIGHT - 6}" fill="none" stroke="#000"/>'
        )
        parts.append(_picture(label.code, f'x="6" y="6" width="{CODE}" height="{CODE}"'))
        for place, line in enumerate(label.lines):
            parts.append(f'<text x="{CODE + 14}" y="{26 + 24 * place}" font-family="sans-serif">{html.escape(line)}</text>')
        parts.append("</g>")
    size = f'width="{WIDTH * COLUMNS}" height="{HEIGHT * rows}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n' + "\n".join(parts) + "\n</svg>\n"


def _text(labels: Sequence[Label]) -> str:
    return "\n".join("\n".join(_visible(line) for line in label.lines) + f"\n{_blocks(label.code)}" for label in labels)


FORMS: Mapping[str, Callable[[Sequence[Label]], str]] = {".html": _html, ".svg": _svg, ".txt": _text}


def _picture(code: str, place: str = "") -> str:
    """A QR code as an SVG element that fills its place: one run of dark modules after the other."""
    import segno  # noqa: PLC0415

    rows = [bytes(row) for row in segno.make(code, error="m", micro=False).matrix_iter(border=4)]
    runs = [
        f"M{run.start()} {y}h{run.end() - run.start()}v1H{run.start()}z"
        for y, row in enumerate(rows)
        for run in re.finditer(rb"\x01+", row)
    ]
    return f'<svg {place} viewBox="0 0 {len(rows)} {len(rows)}"><path d="{"".join(runs)}"/></svg>'


def _blocks(code: str) -> str:
    """A QR code in half-block characters."""
    import segno  # noqa: PLC0415

    out = StringIO()
    segno.make(code, error="m", micro=False).terminal(out, compact=True, border=2)
    return out.getvalue()


def _visible(line: str) -> str:
    """Without control characters, which a terminal or a printer would obey."""
    return "".join(c if c.isprintable() else "?" for c in line)
