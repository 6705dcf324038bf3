"""Cutting one labelled data set into clients that differ, for simulations.

Each class is dealt to the clients in proportions drawn from a Dirichlet distribution (Hsu, Qi, Brown 2019,
https://arxiv.org/abs/1909.06335): alpha = 0.1 gives clients with one or two classes, alpha = 100 nearly equal ones.
"""

import numpy as np

from edgefl.errors import DataError
from edgefl.layout import Index


def dirichlet_split(labels: Index, clients: int, *, alpha: float, seed: int, minimum: int = 1) -> tuple[Index, ...]:
    """Rows of each client: disjoint, together all rows, each ascending.

    Args:
        labels: int64, shape `(n,)`.
        clients: how many parts, at least 1.
        alpha: concentration, positive; smaller is more unequal.
        seed: equal seeds give equal parts.
        minimum: examples that every client gets at least; missing ones come from the clients that have most.

    Raises:
        DataError: too few examples, or a parameter out of range.
    """
    if clients < 1 or not (np.isfinite(alpha) and alpha > 0.0) or minimum < 0:
        raise DataError("impossible split", expected="clients >= 1, alpha > 0", found=f"{clients} clients, alpha {alpha}")
    if clients * minimum > len(labels):
        raise DataError(
            f"too few examples for {clients} clients",
            expected=f"at least {clients * minimum}",
            found=str(len(labels)),
            remedy="Use fewer clients or more data",
        )
    rng = np.random.default_rng(seed)
    owner = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        shares = rng.dirichlet(np.full(clients, alpha))
        # Gamma draws of a tiny alpha may all underflow to zero; then one client, drawn evenly, gets the class.
        shares = shares if np.isfinite(shares).all() else np.eye(clients)[rng.integers(clients)]
        cuts = np.rint(np.cumsum(shares)[:-1] * len(rows)).astype(np.int64)
        owner[rows] = np.searchsorted(cuts, np.arange(len(rows)), side="right")
    _fill(owner, clients, minimum, rng)
    return tuple(np.flatnonzero(owner == client) for client in range(clients))


def _fill(owner: Index, clients: int, minimum: int, rng: np.random.Generator) -> None:
    """Move examples from the largest clients until every client has the minimum."""
    counts = np.bincount(owner, minlength=clients)
    for client in range(clients):
        while counts[client] < minimum:
            largest = int(counts.argmax())
            owner[rng.choice(np.flatnonzero(owner == largest))] = client
            counts[largest] -= 1
            counts[client] += 1
