"""The server process: one thread that listens to the fleet and keeps rounds, blocks and announcements going.

Model: everything happens in `run`'s loop. What arrives goes to small owners (`edgefl.server.reception`); the fleet's database is
where the command line leaves its wishes, and the loop looks there twice a second (`Catalogue`). Nothing is kept in memory that
the database, the devices and the broker's retained messages could not give back.

Rules:

* When the disk is full or the database is locked, what was to be done is a complaint, and is left to another time; the server
  goes on.
* An announcement is made when the link is up, and again on each connection: the broker may have forgotten everything.
"""

import logging
import sqlite3
import time
from collections.abc import Callable
from functools import partial

from edgefl.errors import FleetError, StoreError
from edgefl.identity.signing import Signer
from edgefl.link.contract import Arrived, Connected, Disconnected, Event, Link
from edgefl.server.announce import Announcer
from edgefl.server.blocks import UNLIMITED, BlockServer, Rates
from edgefl.server.books import Books
from edgefl.server.catalogue import Catalogue
from edgefl.server.claimline import ClaimLine
from edgefl.server.complaints import Complaints
from edgefl.server.expected import Expected
from edgefl.server.own_pair import OwnPair
from edgefl.server.reception import Reception
from edgefl.server.renewal import ROTATE, RenewalDesk
from edgefl.server.rollouts import Rollouts
from edgefl.server.speech import Speech
from edgefl.store.blobs import BlobStore
from edgefl.wire import topics
from edgefl.wire.enrolment import Renewed
from edgefl.wire.messages import encode

LOOK_EVERY = 0.5
"""Seconds between two looks at the database."""

log = logging.getLogger("edgefl.server")


class Service:
    """The server of one fleet.

    Args:
        database, blobs: the fleet's.
        link: to the broker, as `edgefl-server`.
        signer: the online key.
        rates: how fast blocks may leave.
        wall: seconds since 1970.
        clock: monotonic seconds.
        claims: where boards ask for their first certificate; None if they cannot.
        renewals: who gives devices their next one; None if nobody does.
        pair: who looks after the server's own; None if nobody does.
    """

    def __init__(
        self,
        database: sqlite3.Connection,
        blobs: BlobStore,
        link: Link,
        signer: Signer,
        *,
        rates: Rates = UNLIMITED,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
        claims: ClaimLine | None = None,
        renewals: RenewalDesk | None = None,
        pair: OwnPair | None = None,
    ) -> None:
        self._link = link
        self._clock = clock
        self._catalogue = Catalogue(database, blobs, wall)
        self._books = Books(database)
        self._rollouts = Rollouts(database, wall)
        self._complaints = Complaints()
        warn = partial(self._complain, logging.WARNING)
        self._speech = Speech(link, self._books.traffic, warn)
        self._expected = Expected()
        self._blocks = BlockServer(blobs, self._speech.block, self._speech.room, rates, self._expected.of)
        self._signer = signer
        self._announcer = Announcer(self._speech.announce, signer, wall)
        self._look_at = clock()
        self._claims = claims
        self._renewals = renewals
        self._pair = pair
        owners = (self._catalogue, self._books, self._rollouts, self._expected, self._blocks, self._speech)
        self._reception = Reception(*owners, warn, renewals=renewals, wall=wall, clock=clock)

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Serve until told to stop."""
        self._link.subscribe(topics.ALL_UP)
        while not should_stop():
            self._turn()
        self._guarded(self._write_books)
        if self._claims is not None:
            self._claims.close()

    def _turn(self) -> None:
        now = self._clock()
        if now >= self._look_at:
            self._look_at = now + LOOK_EVERY
            self._look()
        wait = min(self._look_at - now, self._blocks.wait(now))
        for event in self._link.poll(max(0.0, wait)):
            self._on_event(event)
        self._blocks.advance(self._clock())

    def _look(self) -> None:
        """Do what time and the command line ask for."""
        self._guarded(self._take_up_changes)
        self._guarded(self._advance_rollouts)
        self._guarded(lambda: self._catalogue.renew_documents(self._signer))
        for model in tuple(self._catalogue.trainings):
            self._guarded(partial(self._advance, model))
        self._announcer.everything(self._catalogue)
        self._guarded(self._write_books)
        if self._claims is not None:
            self._guarded(self._claims.advance)
        if self._pair is not None:
            self._guarded(self._pair.look)

    def _take_up_changes(self) -> None:
        if self._catalogue.changed():
            self._refresh()

    def _refresh(self) -> None:
        """Read anew what is to be served."""
        self._write_books()  # what was counted until now belongs to the rounds that were open until now
        self._catalogue.refresh()
        for device in self._renewals.news() if self._renewals else ():
            self._speech.answer("", topics.certificate(device), encode(Renewed(code=ROTATE)))
        for model, why in self._catalogue.broken.items():
            self._complain(logging.ERROR, f"the training of {model} cannot be taken up: {why}")
        self._offer()
        self._catalogue.remove_garbage()

    def _offer(self) -> None:
        self._blocks.offer(self._catalogue.files())
        self._expected.refresh(self._catalogue)

    def _advance_rollouts(self) -> None:
        if self._rollouts.look():
            self._refresh()

    def _advance(self, model: str) -> None:
        """Close the model's round if it is due."""
        training = self._catalogue.trainings.get(model)
        if training is None or not training.is_due():
            return
        self._write_books()
        closed = training.advance()
        if closed is not None:
            log.info("%s@%d %s", model, training.record.version, closed, extra=training.known)
            self._offer()
            self._announcer.everything(self._catalogue)
            self._catalogue.remove_garbage()

    def _on_event(self, event: Event) -> None:
        match event:
            case Connected():
                log.info("connected to the broker")
                self._speech.online = True
                self._announcer.forget()
                self._announcer.everything(self._catalogue)
                if self._pair is not None:
                    self._guarded(self._pair.connected)
            case Disconnected(reason):
                log.warning("no connection to the broker: %s", reason)
                self._speech.online = False
            case Arrived(topic, payload, _):
                self._guarded(lambda: self._advance(self._reception.take(topic, payload)))
            case _:
                log.error("the broker does not let the server subscribe: %s", event)

    def _write_books(self) -> None:
        self._books.write(self._catalogue.open_rounds())

    def _guarded(self, work: Callable[[], None]) -> None:
        """Do it now, or complain and leave it to another time."""
        try:
            work()
        except (StoreError, FleetError) as error:
            self._complain(logging.ERROR, str(error))

    def _complain(self, level: int, text: str) -> None:
        for line in self._complaints.admit(text, self._clock()):
            log.log(level, "%s", line)
