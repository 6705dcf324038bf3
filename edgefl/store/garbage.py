"""Which blobs the fleet still needs, and the removal of the others.

Model: a training leaves a parent vector and a weight file per variant behind with every round. Kept is

* whatever a push made, of every version: graphs, weights, differences and the parent vector (an operator may want to go back);
* of every version the newest parent vector: the result of its last closed round, or what its open round started from; and what
  devices hold of it, if that is another; and the state of the server's optimiser;
* what the server has on offer: the weight files of the last two rounds of each training, and the differences that lead
  to them;
* the weight files of rounds that an update in time can still be coded with (`edgefl.store.offers`).

Deleted is the rest: results and weight files of older rounds, and the blobs of a push that failed.

Rule: a push writes blobs minutes before it names them in the database. It holds the blob store's lock, shared, from the first
blob to the commit; the collection needs it alone, and otherwise waits for another time. What is needed is read under the lock.
"""

import sqlite3
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager

from edgefl.store.atomic import remove_leftovers
from edgefl.store.blobs import BlobStore
from edgefl.store.lock import file_lock
from edgefl.wire.messages import decode
from edgefl.wire.releases import Manifest


def keeping_new_blobs(blobs: BlobStore) -> AbstractContextManager[bool]:
    """While this is held, nothing is deleted: for whoever puts blobs that no row names yet."""
    return file_lock(blobs.root / ".lock", shared=True)


def pushed_blobs(database: sqlite3.Connection) -> frozenset[bytes]:
    """Every blob that a push has named, of any version."""
    found = {bytes(row["weights"]) for row in database.execute("SELECT weights FROM versions")}
    for row in database.execute("SELECT manifest FROM variants"):
        found.update(ref.sha256 for ref in decode(row["manifest"], Manifest).offered)
    return frozenset(found)


def newest_parents(database: sqlite3.Connection) -> frozenset[bytes]:
    """The newest parent vector of every version that has been trained, the one that devices hold, and the optimiser's state."""
    rows = database.execute(
        """SELECT COALESCE(r.result, r.weights) AS parent, CASE WHEN r.result IS NULL THEN r.held ELSE r.held_after END AS held,
           r.optimizer, MAX(r.round) FROM rounds r JOIN trainings t ON t.id=r.training GROUP BY t.model, t.version"""
    )
    return frozenset(
        bytes(vector) for row in rows for vector in (row["parent"], row["held"], row["optimizer"]) if vector is not None
    )


def remove_garbage(blobs: BlobStore, needed: Callable[[], AbstractSet[bytes]]) -> int:
    """Delete every other blob and what killed processes left; how many bytes of blobs, 0 while a push is under way.

    Args:
        blobs: where.
        needed: what is needed; asked when no push is under way and none can begin, so that one that has just ended counts.

    Raises:
        StoreError: a file cannot be deleted.
    """
    with file_lock(blobs.root / ".lock", wait=False) as alone:
        if not alone:
            return 0
        remove_leftovers(blobs.root)
        return blobs.keep_only(needed())
