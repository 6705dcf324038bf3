"""An array in pieces: what would take a copy of the whole, or several wider ones, takes a copy of so many elements.

Model: a board encodes beside all it holds for training, and a whole update has as many coordinates as the model. An expression
over whole arrays makes an array for every operation, and most are wider than what goes in and comes out: an index is eight times
as wide as the code that it looks up. In pieces the same operations stay in the processor's cache, so that this costs no time.
"""

from collections.abc import Iterator

PIECE = 1 << 16
"""Elements; a multiple of eight, so that codes of any width end with a byte."""


def pieces(size: int) -> Iterator[slice]:
    """Where the pieces of so many elements lie, in order."""
    for start in range(0, size, PIECE):
        yield slice(start, min(start + PIECE, size))
