"""Renewal: a device that has a certificate gets its next one, for a new key, before the old one ends.

Model: a device says on every connection which certificate it uses; that makes a pending one active and what came before it
replaced. With a signing request it asks for its next one, which is pending until it is seen in use: until then both are good.
An operator's wish to rotate now is told to the device when it is there, and forgotten when a newer certificate is in use.

Rules:

* Who asks is known from the connection: the broker lets nobody write below another's id. The request must name the same id.
* The same request again gets the same certificate again. A device holds one pending certificate at most, and gets a few in an
  hour: a board that asks for ever costs nothing.
"""

import logging
import sqlite3
from collections.abc import Callable

from edgefl.errors import ClaimError
from edgefl.identity.authority import Authority
from edgefl.server.claims import checked_request, sign
from edgefl.store.audit import record
from edgefl.store.credentials import (
    Certificate,
    add_certificate,
    certificates_of,
    current_serial,
    digest,
    end_rotation,
    rotations,
    set_state,
)
from edgefl.store.database import transaction
from edgefl.wire.enrolment import Renewed, RenewRequest
from edgefl.wire.messages import decode

MOST_IN_AN_HOUR = 4
ROTATE = "rotate"

log = logging.getLogger("edgefl.server")


class RenewalDesk:
    """Answers devices that have a certificate.

    Args:
        database: the fleet's.
        authority: who signs.
        days: life of a certificate.
        wall: seconds since 1970.
    """

    def __init__(self, database: sqlite3.Connection, authority: Authority, days: int, wall: Callable[[], float]) -> None:
        self._database = database
        self._authority = authority
        self._days = days
        self._wall = wall
        self._told: dict[str, float] = {}

    def heard(self, device: str, payload: bytes) -> Renewed | None:
        """The answer to a message of a valid device; None if there is nothing to say.

        Raises:
            MessageError: it does not decode.
            StoreError: the database cannot be used now; nothing was given out.
        """
        request = decode(payload, RenewRequest)
        if not request.csr:
            return self._seen(device, request.using)
        try:
            return self._renew(device, request.csr)
        except ClaimError as refused:
            log.warning("refused a renewal of %s: %s", device, refused)
            if refused.answer != "busy":
                with transaction(self._database):
                    record(self._database, self._wall(), "renewal-refused", device, f"{refused.answer}: {refused.problem}")
            return Renewed(code=refused.answer, text=str(refused))

    def news(self) -> list[str]:
        """The devices that are to rotate and have not been told since that was wanted; they count as told now."""
        wanted = rotations(self._database)
        fresh = [device for device, asked in wanted.items() if self._told.get(device) != asked]
        self._told = wanted
        return fresh

    def _seen(self, device: str, serial: str) -> Renewed | None:
        """Note that a certificate is in use."""
        known = certificates_of(self._database, device)
        used = next((one for one in known if one.serial == serial), None)
        asked = rotations(self._database).get(device)
        if used is None or used.state == "revoked":
            return None
        outdated = [one for one in known if one is not used and _gives_way(one, used)]
        renewed = asked is not None and used.issued > asked
        if used.state != "active" or outdated or renewed:
            self._note(used, outdated, renewed=renewed)
        return Renewed(code=ROTATE) if asked is not None and not renewed else None

    def _note(self, used: Certificate, outdated: list[Certificate], *, renewed: bool) -> None:
        now = self._wall()
        with transaction(self._database):
            for one in outdated:
                set_state(self._database, one, "replaced", now)
            if used.state != "active":
                set_state(self._database, used, "active", now)
                current_serial(self._database, used.device, used.serial)
            if renewed:
                end_rotation(self._database, used.device)

    def _renew(self, device: str, csr: bytes) -> Renewed:
        """Raises ClaimError."""
        asked, now = checked_request(csr, device), self._wall()
        known = certificates_of(self._database, device)
        for one in known:
            if one.request == digest(csr) and one.state in ("pending", "active"):
                return Renewed(one.pem)
        if sum(now - one.issued < 3600.0 for one in known if one.request) >= MOST_IN_AN_HOUR:
            raise ClaimError("busy", f"{device} has had {MOST_IN_AN_HOUR} certificates within the hour")
        chain, certificate = sign(self._authority, asked, csr, self._days, now)
        with transaction(self._database):
            for one in known:
                if one.state == "pending":
                    set_state(self._database, one, "replaced", now)
            add_certificate(self._database, certificate, "renewal")
        return Renewed(chain)


def _gives_way(one: Certificate, used: Certificate) -> bool:
    """Whether a certificate is done with once `used` is in use: the one that was, and what was never taken up before it."""
    return one.state == "active" or (one.state == "pending" and one.issued < used.issued)
