"""The server's line to the claim broker, which it opens only while somebody may claim.

Model: boards without a certificate talk to a broker process of their own (see `edgefl.brokers.claims`), so that whatever is done
there cannot touch the fleet's. The line is looked after a few times a second by the server's one thread, for a bounded time, and
is closed when no claim is open.

Rules: what comes faster than it can be looked at is dropped at the claim broker, whoever has sent it; nothing here is ever queued
for the fleet's own connection. Every message is quality 0: a board asks again until it has an answer.
"""

import logging
import sqlite3
from collections.abc import Callable

from edgefl.errors import LinkError, PeerError
from edgefl.link.contract import Arrived, Connected, Disconnected, Event, Link
from edgefl.server.claims import ClaimDesk
from edgefl.store.credentials import claims_since
from edgefl.wire import topics
from edgefl.wire.enrolment import ClaimRequest
from edgefl.wire.messages import decode, encode

GRACE = 3600.0
"""Seconds after its use that a claim may be asked for again, because the reply was lost."""
CHECK_EVERY = 2.0
"""Seconds between two looks whether claims are open."""
LONGEST_LOOK = 0.05
"""Seconds that one look may take: a flood of claims costs the server a tenth of its time at most."""

log = logging.getLogger("edgefl.server")


class ClaimLine:
    """Listens to boards that claim.

    Args:
        database: the fleet's.
        desk: who answers.
        connect: makes a link to the claim broker, as the server.
        wall: seconds since 1970.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        database: sqlite3.Connection,
        desk: ClaimDesk,
        connect: Callable[[], Link],
        *,
        wall: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        self._database = database
        self._desk = desk
        self._connect = connect
        self._wall = wall
        self._clock = clock
        self._link: Link | None = None
        self._check_at = clock()

    def advance(self) -> None:
        """Do what can be done now; call it a few times a second.

        Raises:
            StoreError: the database cannot be used now.
        """
        now = self._clock()
        if now >= self._check_at:
            self._check_at = now + CHECK_EVERY
            self._open_or_close()
        while self._link is not None and (events := self._link.poll(0.0)):
            for event in events:
                self._on_event(event)
            if self._clock() - now >= LONGEST_LOOK:
                break

    def close(self) -> None:
        """Let go of the line."""
        if self._link is not None:
            self._link.close(0.5)
            self._link = None

    def _open_or_close(self) -> None:
        wanted = claims_since(self._database, self._wall(), GRACE) > 0
        if wanted and self._link is None:
            self._link = self._connect()
            self._link.subscribe(topics.ALL_CLAIMS, 0)
        elif not wanted:
            self.close()

    def _on_event(self, event: Event) -> None:
        match event:
            case Connected():
                log.info("boards may claim")
            case Disconnected(reason):
                log.warning("no board can claim, for the claim broker is away (%s); run `edgefl broker --claims`", reason)
            case Arrived(topic, payload, _):
                self._on_message(topic, payload)

    def _on_message(self, topic: str, payload: bytes) -> None:
        try:
            name = topics.parse_claim(topic)
            reply = self._desk.answer(decode(payload, ClaimRequest))
            if reply is not None and self._link is not None:
                self._link.publish(topics.claim_reply(name), encode(reply), qos=0)
        except (PeerError, LinkError) as error:
            log.warning("dropped a claim: %s", error)
