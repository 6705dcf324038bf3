"""The pages of the documentation name tests, and other pages, that exist."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROWS = [line for line in (TESTS.parent / "docs" / "failures.md").read_text().splitlines() if line.startswith("| ")][1:]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:40])
def test_every_row_names_what_proves_it(row):
    """Each file is there, and each part of a name in brackets is a test's of the file before it."""
    what, must, proof, how = (cell.strip() for cell in row.strip("|").split("|"))
    files = re.findall(r"`(test_[a-z_]+\.py)`(?: \(`([a-z_]+)`\))?", proof)
    assert files
    for name, part in files:
        text = (TESTS / name).read_text()
        assert re.search(rf"def test_\w*{part}", text), f"{name} has no test of {part}"
    assert what
    assert must
    assert how in {"real", "simulated", "both", "real files", "real trainer", ""}


@pytest.mark.parametrize("page", sorted((TESTS.parent / "docs").rglob("*.md")), ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    """Every link to a file of this project finds it."""
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []
