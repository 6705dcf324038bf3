"""The running server's own pair: it takes up a new one as soon as it is there, and makes one itself before the old one ends.

Model: whoever renews the pair, this process or `edgefl certificates renew`, puts a file in place; this process sees that it is
another one, says good-bye to the broker and connects anew, with the same client id and so to the same session. When the broker
has accepted the new certificate, the old one goes into the list of revoked certificates. Not accepted for a while, the old pair
comes back.

Rule: the server renews of its own accord only where `edgefl broker` of this fleet runs on this machine. A broker elsewhere may
know the server by this very certificate; there an operator says when.
"""

import logging
import sqlite3
from collections.abc import Callable

from edgefl.brokers.running import running_broker
from edgefl.errors import BrokerError
from edgefl.link.contract import Link
from edgefl.server.founding import authority_of
from edgefl.server.pairs import go_back, held, is_due, note_use, renew
from edgefl.server.revoke import refresh_list
from edgefl.store.fleet import Fleet

LOOK_EVERY = 3600.0
"""Seconds between two looks at the certificate's age."""
TRY_SECONDS = 90.0
"""How long a new pair may go without a connection."""

log = logging.getLogger("edgefl.server")


class OwnPair:
    """Looks after the server's pair.

    Args:
        fleet, database: whose.
        link: the server's.
        wall: seconds since 1970.
        clock: monotonic seconds.
    """

    def __init__(
        self, fleet: Fleet, database: sqlite3.Connection, link: Link, wall: Callable[[], float], clock: Callable[[], float]
    ) -> None:
        self._fleet = fleet
        self._database = database
        self._link = link
        self._wall = wall
        self._clock = clock
        self._shown = self._stamp()
        self._since = self._look_at = clock()

    def look(self) -> None:
        """Do what is due; call it a few times a second.

        Raises:
            FleetError: the certificate or the authority is damaged.
            StoreError: a file or the database cannot be used now.
        """
        now, stamp = self._clock(), self._stamp()
        if stamp != self._shown:
            self._shown, self._since = stamp, now
            log.info("there is another certificate of the server: connecting with it")
            self._link.reconnect()
        elif not self._link.connected and now - self._since > TRY_SECONDS:
            self._since = now
            if go_back(self._fleet, self._database, self._wall()):
                log.warning("no connection with the new certificate of the server: back to the one before")
        elif now >= self._look_at:
            self._look_at = now + LOOK_EVERY
            if is_due(held(self._fleet, "server"), self._wall()) and running_broker(self._fleet.broker) is not None:
                renew(self._fleet, self._database, "server", self._wall())

    def connected(self) -> None:
        """The broker has accepted the pair: what was in use before opens nothing any more.

        The file in place is the pair that the link has connected with only if it is still the one that was shown. One that has
        replaced it since the link has read it is seen by the next look, which connects anew.

        Raises:
            FleetError: the certificate or the authority is damaged.
            StoreError: a file or the database cannot be used now.
        """
        serial = held(self._fleet, "server").serial
        if self._stamp() != self._shown or not self._link.connected:
            return
        if not note_use(self._fleet, self._database, "server", self._wall(), serial):
            return
        log.info("connected with certificate %s; the one before is revoked", serial)
        refresh_list(self._fleet, self._database, authority_of(self._fleet), self._wall())
        broker = running_broker(self._fleet.broker)
        try:
            if broker is not None:
                broker.reload()
        except BrokerError as error:
            log.warning("the broker has not read the list of revoked certificates: %s", error)

    def _stamp(self) -> tuple[int, int]:
        """Which file is in place."""
        try:
            about = self._fleet.server_certificate.stat()
        except OSError:
            return 0, 0  # the link says it better when it connects
        return about.st_ino, about.st_mtime_ns
