"""What samples of a process's memory say: whether it fills up and stays, or leaks.

A sample is seconds since the beginning and resident bytes. The slope is that of the line of least squares, in kilobytes a minute.
The means of the quarters show whether memory rises ever more slowly, as memory that fills up does (SQLite keeps pages up to
`edgefl.store.database.CACHE_KIB`, malloc what it has freed), or steadily, as a leak does.
"""

import itertools
from collections.abc import Sequence

import numpy as np

Samples = Sequence[tuple[float, int]]

WARM_SECONDS, WARM_SHARE = 60.0, 0.35
"""How long the server's memory is not judged: it has not seen everything yet that it will keep."""


def slope(samples: Samples) -> float:
    """Kilobytes a minute of the line of least squares through the samples."""
    times, sizes = np.array([at for at, _ in samples]), np.array([float(size) for _, size in samples])
    return float(np.polyfit(times, sizes, 1)[0]) * 60.0 / 1000.0 if len(samples) > 1 else 0.0


def warm(samples: Samples) -> Samples:
    """The samples after the warm-up: a minute at least, and until a second version's training has begun."""
    after = max(WARM_SECONDS, samples[-1][0] * WARM_SHARE)
    return [sample for sample in samples if sample[0] >= after]


def quarters(samples: Samples) -> tuple[float, ...]:
    """Mean megabytes in each quarter of the samples."""
    return tuple(round(float(np.mean([size for _, size in part])) / 1e6, 2) for part in _parts(samples, 4) if part)


def _parts(samples: Samples, count: int) -> list[Samples]:
    cuts = [len(samples) * place // count for place in range(count + 1)]
    return [samples[begin:end] for begin, end in itertools.pairwise(cuts)]
