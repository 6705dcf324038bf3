"""Cutting one labelled data set into clients, for simulations: alike, or in different ways.

* IID: a random permutation, cut into equal parts.
* Dirichlet: each class is dealt to the clients in proportions drawn from a Dirichlet distribution (Hsu, Qi, Brown 2019,
  https://arxiv.org/abs/1909.06335): alpha = 0.1 gives clients with one or two classes, alpha = 100 nearly equal ones.
* Shards: the examples, sorted by label, are cut into shards of equal length, and every client gets k of them at random (McMahan
  et al., AISTATS 2017, https://arxiv.org/abs/1602.05629): at most about k classes each.
* Natural: the data itself says whose each example is.

Rule: the parts are disjoint, each ascending, and together all rows (shards: all that fill whole shards), for any seed.
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


def iid_split(count: int, clients: int, *, seed: int) -> tuple[Index, ...]:
    """Rows of each client: a random permutation of `count` rows in parts whose lengths differ by at most one.

    Raises:
        DataError: fewer examples than clients, or no clients.
    """
    _check_clients(count, clients)
    order = np.random.default_rng(seed).permutation(count)
    return tuple(np.sort(part) for part in np.array_split(order, clients))


def shard_split(labels: Index, clients: int, *, each: int, seed: int) -> tuple[Index, ...]:
    """Rows of each client: `each` of `clients * each` equal shards of the rows in the order of their labels.

    Args:
        labels: int64, shape `(n,)`.
        clients: how many parts, at least 1.
        each: shards of a client, at least 1; the remainder of a division by all shards is left out.
        seed: of the order within a label and of who gets which shard.

    Raises:
        DataError: fewer examples than shards, or a parameter out of range.
    """
    if each < 1:
        raise DataError("impossible split", expected="at least one shard for each client", found=str(each))
    _check_clients(len(labels), clients * each)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    length = len(labels) // (clients * each)
    shards = order[: length * clients * each].reshape(clients, each, length)
    dealt = shards.reshape(-1, length)[rng.permutation(clients * each)].reshape(clients, -1)
    return tuple(np.sort(part) for part in dealt)


def natural_split(owners: Index, clients: int = 0, *, seed: int = 0) -> tuple[Index, ...]:
    """Rows of each client that the data names, in the order of their numbers.

    Args:
        owners: int64, shape `(n,)`: whose each example is.
        clients: how many of them, drawn at random; 0 takes all.
        seed: of that draw.

    Raises:
        DataError: the data names fewer clients.
    """
    known = np.unique(owners)
    if clients > len(known) or not len(known):
        raise DataError("the data names too few clients", expected=f"at least {max(1, clients)}", found=str(len(known)))
    if clients:
        known = np.sort(np.random.default_rng(seed).permutation(known)[:clients])
    return tuple(np.flatnonzero(owners == client) for client in known)


def _check_clients(count: int, parts: int) -> None:
    if parts < 1 or count < parts:
        raise DataError(
            f"too few examples for {parts} parts", expected=f"at least {max(1, parts)}", found=str(count),
            remedy="Use fewer clients or more data",
        )  # fmt: skip
