"""Bits of known odds as bytes: a range coder on several lanes, so that numpy can code many bits at a time.

Model: asymmetric numeral systems in the range form (Duda 2013, https://arxiv.org/abs/1311.2540, section 3.1), interleaved (Giesen
2014, https://arxiv.org/abs/1402.3392). Each lane is one number, the state; a bit of probability p makes it larger by about 1/p,
and what outgrows 32 bits leaves it as a word of 16. In one step each of the first lanes codes one bit. All lanes share one row of
words, because a reader needs them in the order that its own states tell it. What is learnt from a step (`Odds`) is the same at
both ends, so no table of frequencies is sent.

Rules: integers only, so every machine gets the same bytes and bits. A reader ends where it must: each state back at its start and
no word left over; a file that is damaged seldom does. A lane costs about two bytes more than its content.
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgefl.codec.fixed import Bits
from edgefl.errors import MessageError
from edgefl.layout import Index

PRECISION = 15
"""Bits of a probability."""
WHOLE = 1 << PRECISION
START = 1 << 16
MAX_LANES_LOG = 12
LIMIT = 1 << 13
"""Bits of a context after which its counts are halved: the odds of later bits count more than those of long ago."""

Probabilities = npt.NDArray[np.int64]


class Odds:
    """How likely a one is in each of some contexts, learnt from the bits so far (Krichevsky and Trofimov 1981).

    Args:
        contexts: how many there are.
    """

    def __init__(self, contexts: int) -> None:
        self._seen = np.zeros(contexts, dtype=np.int64)
        self._ones = np.zeros(contexts, dtype=np.int64)

    def of(self, contexts: Index) -> Probabilities:
        """Probability of a one in each context, times `WHOLE`, strictly between 0 and `WHOLE`."""
        return ((2 * self._ones[contexts] + 1) << (PRECISION - 1)) // (self._seen[contexts] + 1)

    def learn(self, contexts: Index, bits: Bits) -> None:
        """Count the bits that came in these contexts."""
        count = len(self._seen)
        self._seen += np.bincount(contexts, minlength=count)
        self._ones += np.bincount(contexts[bits], minlength=count)
        if self._seen.max() > LIMIT:
            full = self._seen > LIMIT
            self._seen[full] >>= 1
            self._ones[full] >>= 1


class Coder(Protocol):
    """One end: both walk over the same content with the same odds."""

    @property
    def lanes(self) -> int:
        """How many bits a step can have."""
        ...

    def code(self, contexts: Index, odds: Odds, bits: Bits) -> Bits:
        """Code one step of at most `lanes` bits; returns them. What a reader is given as bits is not looked at."""
        ...


class LaneWriter:
    """Takes bits step by step; `finish` gives the bytes, because the last bit has to be coded first.

    Args:
        lanes_log: binary logarithm of the number of lanes, 0 to `MAX_LANES_LOG`.
    """

    def __init__(self, lanes_log: int) -> None:
        self.lanes = 1 << lanes_log
        self._steps: list[tuple[npt.NDArray[np.uint16], Bits]] = []

    def code(self, contexts: Index, odds: Odds, bits: Bits) -> Bits:
        """Keep one step of at most `lanes` bits."""
        self._steps.append((odds.of(contexts).astype(np.uint16), bits))
        odds.learn(contexts, bits)
        return bits

    def finish(self) -> bytes:
        """The states as uint32, then the words as uint16, little-endian."""
        states = np.full(self.lanes, START, dtype=np.uint64)
        words: list[npt.NDArray[np.uint16]] = []
        for probabilities, bits in reversed(self._steps):
            state = states[: len(bits)]
            ones = probabilities.astype(np.uint64)
            share = np.where(bits, ones, WHOLE - ones)
            full = state >= share << np.uint64(32 - PRECISION)
            words.append(state[full].astype(np.uint16))  # keeps the low 16 bits
            state[full] >>= np.uint64(16)
            quotient, rest = np.divmod(state, share)
            state[:] = (quotient << np.uint64(PRECISION)) + rest + np.where(bits, 0, ones).astype(np.uint64)
        stream = np.concatenate([np.empty(0, dtype=np.uint16), *reversed(words)])
        return states.astype("<u4").tobytes() + stream.astype("<u2").tobytes()


class LaneReader:
    """Gives the bits that a `LaneWriter` took, in the same steps.

    Args:
        data: what `finish` gave.
        lanes_log: the writer's.

    Raises:
        MessageError: the bytes are too few, or an odd number.
    """

    def __init__(self, data: memoryview, lanes_log: int) -> None:
        self.lanes = 1 << lanes_log
        if len(data) < 4 * self.lanes or len(data) % 2:
            raise MessageError("coded weights are truncated", expected=f"{4 * self.lanes} bytes and words", found=f"{len(data)}")
        self._states = np.frombuffer(data[: 4 * self.lanes], dtype="<u4").astype(np.uint64)
        self._words = np.frombuffer(data[4 * self.lanes :], dtype="<u2").astype(np.uint64)
        self._place = 0
        if int(self._states.min()) < START:
            raise MessageError("coded weights begin with an impossible state")

    def code(self, contexts: Index, odds: Odds, bits: Bits) -> Bits:
        """The next step's bits, as many as there are contexts. Raises MessageError where words are missing."""
        state = self._states[: len(contexts)]
        ones = odds.of(contexts).astype(np.uint64)
        rest = state & np.uint64(WHOLE - 1)
        bits = rest < ones
        share = np.where(bits, ones, WHOLE - ones)
        state >>= np.uint64(PRECISION)
        state *= share
        state += np.where(bits, rest, rest - ones)
        low = np.flatnonzero(state < START)
        following = self._place + len(low)
        if following > len(self._words):
            raise MessageError("coded weights are truncated", expected=f"{following} words or more", found=f"{len(self._words)}")
        state[low] = (state[low] << np.uint64(16)) | self._words[self._place : following]
        self._place = following
        odds.learn(contexts, bits)
        return bits

    def finish(self) -> None:
        """Refuse a stream that does not end here. Raises MessageError."""
        if self._place != len(self._words) or (self._states != START).any():
            raise MessageError("coded weights do not end where they should")
