"""What the server has counted and heard, until it is written into the fleet's database.

Rule: a book is cleared after the commit, so that nothing is lost when the database cannot be written now.
"""

import sqlite3
from collections.abc import Mapping

from edgefl.server.traffic import TrafficBook
from edgefl.store.database import transaction
from edgefl.store.presence import PresenceBook


class Books:
    """Traffic and presence. Owned by the server's one thread.

    Attributes:
        traffic: bytes and incidents.
        presence: births, deaths and reports.
    """

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self.traffic = TrafficBook()
        self.presence = PresenceBook()

    def write(self, open_rounds: Mapping[str, tuple[int, int]]) -> None:
        """Write everything down.

        Args:
            open_rounds: id of the training and number of the open round, by model in training: bytes are theirs.

        Raises:
            StoreError: the database cannot be written now; everything is kept.
        """
        if self.traffic or self.presence:
            with transaction(self._database):
                self.traffic.write(self._database, open_rounds)
                self.presence.write(self._database)
            self.traffic.clear()
            self.presence.clear()
