"""The next certificate, before the present one ends: asked for over the connection that the present one made.

Model: *quiet* -> (60 % of the certificate's life are over, or the server says so) -> *asking*, with a new key -> (answer) -> the
pair is switched in one rename, the old one is kept beside it, and the link connects anew -> *trial* -> (connected) -> the old
pair is deleted -> *quiet*. A trial that does not connect in time goes back to the old pair, which the server still takes.

Rules: nothing stops for it: training goes on, and what is queued is sent after the switch. The device says on every connection
which certificate it uses; that is how the server knows.
"""

import logging
import random
from collections.abc import Callable

from edgefl.device import identity
from edgefl.device.config import Bundle
from edgefl.errors import LinkError, PeerError, StoreError
from edgefl.identity.requests import check_answer
from edgefl.link.backoff import Backoff
from edgefl.link.contract import Link
from edgefl.wire import topics
from edgefl.wire.enrolment import Renewed, RenewRequest
from edgefl.wire.messages import decode, encode

RENEW_AT = 0.6
"""Of a certificate's life: for 90 days that leaves 36 for a board that is off, or a server that is away."""
NAME = "renewal"
TRIAL_SECONDS = 90.0
LOOK_EVERY = 60.0
PATIENCE = 10.0
"""Seconds that an answer may take at least."""
LATER = 3600.0
"""Seconds to wait after a refusal, and between two renewals that nobody asked for: a wrong clock must not renew for ever."""

log = logging.getLogger("edgefl.device")


class Rotation:
    """Renews the board's certificate. Owned by the agent's one thread; idle on a board without `device.pem`.

    Args:
        bundle: whose pair.
        link: to the broker.
        clock: monotonic seconds.
        wall: seconds since 1970.
        rng: of pauses.
    """

    def __init__(
        self, bundle: Bundle, link: Link, *, clock: Callable[[], float], wall: Callable[[], float], rng: random.Random
    ) -> None:
        self._bundle = bundle
        self._link = link
        self._clock = clock
        self._wall = wall
        self._pauses = Backoff(rng)
        self._held = identity.pair_validity(bundle)
        self._asking = self._held is not None and identity.has_draft(bundle, NAME)
        self._ask_at = clock()
        self._look_at = clock()
        self._trial_ends = clock() + TRIAL_SECONDS if identity.has_previous(bundle) else None

    def connected(self) -> None:
        """The link is up: the pair is good. Say which it is."""
        if self._held is None:
            return
        if self._trial_ends is not None:
            self._trial_ends = None
            identity.drop_previous(self._bundle)
            log.info("connected with the new certificate")
        self._say(RenewRequest(self._held.serial))

    def tick(self) -> None:
        """Do what it is time for."""
        if self._held is None:
            return
        now = self._clock()
        try:
            if self._trial_ends is not None and now >= self._trial_ends and not self._link.connected:
                self._go_back()
            if now >= self._look_at:
                self._look_at = now + LOOK_EVERY
                life = self._held.ends - self._held.begins
                self._asking = self._asking or self._wall() >= self._held.begins + RENEW_AT * life
            if self._asking and self._trial_ends is None and self._link.connected and now >= self._ask_at:
                self._ask(now)
        except StoreError as error:
            self._ask_at = now + LATER
            log.warning("the certificate cannot be renewed now: %s", error)

    def heard(self, payload: bytes) -> None:
        """An answer of the server, or its order to rotate.

        Raises:
            PeerError: not believed.
            StoreError: the new pair cannot be written; the old one stays.
        """
        answer = decode(payload, Renewed)
        if self._held is None:
            return
        if answer.certificate:
            self._switch(answer.certificate)
        elif answer.code == "rotate":
            if not self._asking:
                self._asking, self._ask_at = True, self._clock()
        elif self._asking:
            log.warning("the server does not renew the certificate (%s): %s", answer.code, answer.text[:200])
            self._ask_at = self._clock() + LATER

    def _ask(self, now: float) -> None:
        if self._held is not None:
            self._pauses.failed(now)
            self._ask_at = max(self._pauses.due, now + PATIENCE)
            self._say(RenewRequest(self._held.serial, identity.draft(self._bundle, NAME).csr))

    def _switch(self, chain: bytes) -> None:
        """Use the new pair from now on; PeerError if it is not ours."""
        if not identity.has_draft(self._bundle, NAME):
            return  # answered before
        key = identity.draft(self._bundle, NAME).key
        try:
            root = self._bundle.ca.read_bytes()
        except OSError as error:
            raise StoreError(f"cannot read {self._bundle.ca}", found=str(error)) from error
        check_answer(chain, key, self._bundle.config.id, root)
        identity.keep_previous(self._bundle)
        identity.install_pair(self._bundle, key, chain)
        identity.drop_draft(self._bundle, NAME)
        self._held = identity.pair_validity(self._bundle)
        now = self._clock()
        self._asking, self._ask_at, self._look_at = False, now, now + LATER
        self._trial_ends = now + TRIAL_SECONDS
        log.info("a new certificate is there; connecting with it")
        self._link.reconnect()

    def _go_back(self) -> None:
        """The new pair does not connect: take the old one again, and try another time."""
        self._trial_ends = None
        identity.go_back(self._bundle)
        self._held = identity.pair_validity(self._bundle)
        self._ask_at = self._clock() + LATER
        log.warning("the new certificate does not connect; going back to the one before")

    def _say(self, request: RenewRequest) -> None:
        try:
            self._link.publish(topics.renew(self._bundle.config.id), encode(request))
        except (LinkError, PeerError) as error:
            log.warning("cannot ask for a certificate: %s", error)
