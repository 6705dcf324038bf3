"""k of n, as bits: the coder under every position, sign and level of an update.

Model: both ends know n and k. If more than half of the numbers below n are members, the others are coded instead; m is the number
of coded ones. Then, by density:

* m < n/4: the gaps between neighbours are geometrically distributed and Golomb's code is the best prefix code for them (Golomb
  1966; Gallager and van Voorhis 1975). Quotients (unary), remainders (fixed width) and the extra bits of truncated binary lie in
  three streams of their own, so that numpy can decode each without walking through it bit by bit.
* otherwise: the bitmap in blocks of five bits, Huffman-coded. The code is built from the integers m and n alone, so it is not
  sent. The bits are ordered by tree node (a Huffman-shaped wavelet tree, Maekinen and Navarro 2005) instead of by symbol: the
  same number of bits, but whole arrays at a time.

Rules: what a decoder derives, it derives in integers; it checks every length before it allocates and gives strictly increasing
members below n, or an UpdateError.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgefl.codec.bits import BitReader
from edgefl.codec.fixed import Bits, codes_to_bits
from edgefl.codec.pieces import pieces
from edgefl.errors import UpdateError
from edgefl.layout import Index

Gaps = npt.NDArray[np.int32]

BLOCK = 5
"""Bits of the bitmap in one Huffman symbol: 32 symbols keep the redundancy below 1 % and the tree at 31 nodes."""


def write_subset(members: Index, size: int) -> list[Bits]:
    """The bits of strictly increasing members in `[0, size)`, of which a reader knows the number."""
    if 4 * len(members) >= size:
        return list(write_flags(flags_of(members, size)))
    return write_gaps(members, divisor_of(len(members), size)) if len(members) else []


def write_flags(flags: Bits) -> Iterator[Bits]:
    """The same of the places that are set: of many members it takes less time and memory than by a list of them."""
    size, count = len(flags), int(np.count_nonzero(flags))
    inverted = 2 * count > size
    coded, marked = (size - count, ~flags) if inverted else (count, flags)
    if 4 * coded >= size:
        yield from blocks_to_bits(marked, coded)
    elif coded:
        yield from write_gaps(np.flatnonzero(marked), divisor_of(coded, size))


def read_subset(reader: BitReader, count: int, size: int) -> Index:
    """The `count` members, int64, that `write_subset` coded; 0 <= count <= size.

    Raises:
        UpdateError: the bits are no such coding.
    """
    if 0 < 4 * count < size:
        return read_gaps(reader, divisor_of(count, size), count, size)
    return np.flatnonzero(read_flags(reader, count, size)) if count else np.empty(0, dtype=np.int64)


def read_flags(reader: BitReader, count: int, size: int) -> Bits:
    """The same as flags, of which those of members are set."""
    inverted = 2 * count > size
    coded = size - count if inverted else count
    if coded and 4 * coded >= size:
        flags = read_blocks(reader, coded, size)
    else:
        flags = flags_of(read_gaps(reader, divisor_of(coded, size), coded, size) if coded else (), size)
    return np.logical_not(flags, out=flags) if inverted else flags


def flags_of(members: Index | tuple[()], size: int) -> Bits:
    """For each number below `size` whether it is a member."""
    flags = np.zeros(size, dtype=np.bool_)
    if len(members):
        flags[members] = True
    return flags


def complement(members: Index, size: int) -> Index:
    """The numbers below `size` that are no members."""
    return np.flatnonzero(~flags_of(members, size))


def divisor_of(count: int, size: int) -> int:
    """A divisor for gaps of `count` of `size` members that both ends derive alike: ceil(ln 2 / p - 0.8466) in 16-bit fixed point.

    That is the expansion of the best one, ceil(log(2-p) / -log(1-p)), for small p = count/size; up to p = 1/4 it is equal or
    costs as much to a thousandth.
    """
    return max(1, -((55482 * count - 45426 * size) // (65536 * count)))


def write_gaps(members: Index, divisor: int) -> list[Bits]:
    """Remainders, extra bits and quotients of Golomb's code of one member or more."""
    width, short = _split(divisor)
    quotients, remainders = np.divmod(gaps_of(members), np.int32(divisor))
    quotients += 1
    ends = np.cumsum(quotients, out=quotients)
    unary = np.zeros(int(ends[-1]), dtype=np.bool_)
    unary[ends - 1] = True
    del quotients, ends
    long = remainders >= short
    raised = remainders[long] + np.int32(short)
    remainders[long] = raised >> 1
    return [codes_to_bits(remainders, width), (raised & 1).astype(np.bool_), unary]


def gaps_of(members: Index) -> Gaps:
    """How many numbers lie between each member and the one before, int32; below the first, how many there are."""
    gaps = np.empty(len(members), dtype=np.int32)
    gaps[:1] = members[:1]
    np.subtract(members[1:], members[:-1], out=gaps[1:], casting="same_kind")
    gaps[1:] -= 1
    return gaps


def read_gaps(reader: BitReader, divisor: int, count: int, size: int) -> Index:
    """What `write_gaps` wrote: `count` members below `size`, both at least 1. Each stream ends where the reader aligns it."""
    width, short = _split(divisor)
    remainders = reader.codes(count, width)
    members = remainders.astype(np.int64)
    reader.align()
    if short < divisor:
        long = np.flatnonzero(remainders >= short)
        members[long] = 2 * members.take(long) - short + reader.take(len(long))
        reader.align()
    ends = reader.ones(count, count + size // divisor)
    reader.align()
    members -= divisor - 1  # the i-th quotient and those before it make ends[i] - i
    members[0] += divisor - 1
    np.cumsum(members, out=members)
    ends *= divisor
    members += ends
    if int(members[-1]) >= size:
        raise UpdateError("a position lies outside of the vector", expected=f"below {size}", found=str(int(members[-1])))
    return members


def _split(divisor: int) -> tuple[int, int]:
    """Truncated binary for remainders below `divisor`: fixed width, and the first remainder that needs one more bit."""
    width = divisor.bit_length() - 1
    return width, (2 << width) - divisor


@dataclass(frozen=True, slots=True)
class _Node:
    """Inner node or, without children, leaf of a Huffman tree; `symbols` are those below it."""

    symbols: tuple[int, ...]
    children: "tuple[_Node, _Node] | None" = None


def _huffman_tree(count: int, size: int) -> _Node:
    """Tree for blocks in which each bit is set with probability count/size, built in exact integer arithmetic.

    Repeatedly joins the two nodes of least weight, among equals the older; leaves are numbered by symbol, the first of the two
    is the child for bit 0.
    """
    heap = []
    for symbol in range(1 << BLOCK):
        ones = symbol.bit_count()
        heap.append((count**ones * (size - count) ** (BLOCK - ones), symbol, _Node((symbol,))))
    heapq.heapify(heap)
    for number in range(1 << BLOCK, (2 << BLOCK) - 1):
        first, second = heapq.heappop(heap), heapq.heappop(heap)
        joined = _Node(first[2].symbols + second[2].symbols, (first[2], second[2]))
        heapq.heappush(heap, (first[0] + second[0], number, joined))
    return heap[0][2]


def blocks_to_bits(flags: Bits, count: int) -> Iterator[Bits]:
    """The blocks of a bitmap in which so many bits are set, coded node by node."""
    symbols = np.empty(-(-len(flags) // BLOCK), dtype=np.uint8)
    whole = len(flags) // BLOCK
    np.right_shift(np.packbits(flags[: whole * BLOCK].reshape(-1, BLOCK), axis=1)[:, 0], 8 - BLOCK, out=symbols[:whole])
    symbols[whole:] = np.packbits(flags[whole * BLOCK :]) >> np.uint8(8 - BLOCK)
    yield from _branches(_huffman_tree(count, len(flags)), symbols)


def _branches(node: _Node, symbols: "np.typing.NDArray[np.uint8]") -> Iterator[Bits]:
    """The branch bits of these symbols, node by node, a node before its children."""
    if node.children is None:
        return
    table = np.zeros(1 << BLOCK, dtype=np.bool_)
    table[list(node.children[1].symbols)] = True
    right = np.empty(len(symbols), dtype=np.bool_)
    for piece in pieces(len(symbols)):
        right[piece] = table[symbols[piece]]
    yield right
    yield from _branches(node.children[0], symbols[~right])
    yield from _branches(node.children[1], symbols[right])


def read_blocks(reader: BitReader, count: int, size: int) -> Bits:
    """What `blocks_to_bits` wrote: flags of `count` members below `size`, 1 <= count <= size/2."""
    blocks = -(-size // BLOCK)
    reader.expect(blocks)  # each block costs at least the bit at the root
    symbols = np.empty(blocks, dtype=np.uint8)
    pending = [(_huffman_tree(count, size), np.arange(blocks, dtype=np.int32))]
    while pending:
        node, places = pending.pop()
        if node.children is None:
            symbols[places] = node.symbols[0]
            continue
        right = reader.take(len(places))
        pending.append((node.children[1], places[right]))
        pending.append((node.children[0], places[~right]))
    reader.align()
    symbols <<= np.uint8(8 - BLOCK)
    flags = np.unpackbits(symbols.reshape(-1, 1), axis=1, count=BLOCK).reshape(-1).view(np.bool_)
    found = int(np.count_nonzero(flags[:size]))
    if found != count or flags[size:].any():
        raise UpdateError("the position blocks hold another number of positions", expected=str(count), found=str(found))
    return flags[:size]
