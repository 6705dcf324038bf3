"""Claims: a board without a certificate proves with a one-time token that it may have one, and gets it.

Model: `ClaimDesk.answer` judges one request and gives the reply. In this order: the token (in constant time, against a hash), the
signing request, the name in it, the registry, the profile, whether the claim is still open, when it ends. Only who has the token
learns anything but "no": an unknown id and a wrong token are the same answer. Claim, certificate and audit row are one
transaction.

Rules:

* A token is good for one signing request. The same request again gets the same certificate again, for the reply may have been
  lost; another request gets nothing.
* A refusal is written down with its reason, and there is a bound on that: each id has a few refusals a minute and all together
  have some more, then there is silence. A request with the right token needs no such turn, so that nobody can use up a board's
  from outside, and no flood can fill the disk.
"""

import datetime as dt
import hmac
import logging
import sqlite3
from collections.abc import Callable

from edgefl.errors import ClaimError, FleetError, SignatureError
from edgefl.identity.authority import Authority
from edgefl.identity.requests import Request, read_request
from edgefl.names import is_id
from edgefl.server.allowance import Bucket, Buckets
from edgefl.store.audit import record
from edgefl.store.credentials import (
    Certificate,
    Claim,
    add_certificate,
    certificates_of,
    current_serial,
    digest,
    find_claim,
    set_state,
    use_claim,
)
from edgefl.store.database import transaction
from edgefl.store.registry import get_device
from edgefl.wire.enrolment import ClaimReply, ClaimRequest

REFUSALS_A_MINUTE = 6.0
ALL_REFUSALS_A_MINUTE = 30.0
"""That are answered and written down: of one id, and of all. A flood that never ends costs some 4 MB of database in a day."""
NOBODY = digest(b"no token has this hash")

log = logging.getLogger("edgefl.server")


class ClaimDesk:
    """Answers claims.

    Args:
        database: the fleet's.
        authority: who signs.
        days: life of a certificate.
        wall: seconds since 1970.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        database: sqlite3.Connection,
        authority: Authority,
        days: int,
        *,
        wall: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        self._database = database
        self._authority = authority
        self._days = days
        self._wall = wall
        self._clock = clock
        self._refusals = Buckets(REFUSALS_A_MINUTE / 60.0, REFUSALS_A_MINUTE)
        self._all_refusals = Bucket(ALL_REFUSALS_A_MINUTE / 60.0, ALL_REFUSALS_A_MINUTE, clock())

    def answer(self, request: ClaimRequest) -> ClaimReply | None:
        """The reply; None for an id that has been refused too often lately, or when all have.

        Raises:
            StoreError: the database cannot be used now; nothing was given out.
        """
        try:
            return self._certificate(request)
        except ClaimError as refused:
            device = request.device if is_id(request.device) else "?"
            now = self._clock()
            if not (self._refusals.take(device, now) and self._all_refusals.take(now)):
                return None
            log.warning("refused a claim of %s: %s", device, refused)
            with transaction(self._database):
                record(self._database, self._wall(), "claim-refused", device, f"{refused.answer}: {refused.problem}")
            return ClaimReply(code=refused.answer, text=str(refused))

    def _certificate(self, request: ClaimRequest) -> ClaimReply:
        """Raises ClaimError."""
        claim = self._proved(request)
        asked = checked_request(request.csr, request.device)
        self._check_device(request, claim)
        if claim.used is not None:
            return self._again(claim, request.csr)
        now = self._wall()
        if now >= claim.expires:
            raise ClaimError("expired", "the claim has expired; make a new one with `edgefl provision ID --claim --again`")
        chain, certificate = sign(self._authority, asked, request.csr, self._days, now)
        with transaction(self._database):
            if not use_claim(self._database, claim, now):
                raise ClaimError("used", "the claim was replaced or used meanwhile")
            for older in certificates_of(self._database, request.device):
                if older.state in ("pending", "active"):
                    set_state(self._database, older, "replaced", now)
            add_certificate(self._database, certificate, "claim")
            current_serial(self._database, request.device, certificate.serial)
        log.info("%s has claimed its certificate", request.device)
        return ClaimReply(chain)

    def _proved(self, request: ClaimRequest) -> Claim:
        """The claim that the token belongs to. Raises ClaimError."""
        claim = find_claim(self._database, request.device)
        known = claim.token if claim else NOBODY
        if not hmac.compare_digest(digest(request.token), known) or claim is None:
            raise ClaimError("token", "no open claim has this id and token")
        return claim

    def _check_device(self, request: ClaimRequest, claim: Claim) -> None:
        try:
            device = get_device(self._database, request.device)
        except FleetError:
            raise ClaimError("token", "no open claim has this id and token") from None
        if device.revoked is not None:
            raise ClaimError("revoked", "the device was revoked")
        if request.profile != claim.profile:
            raise ClaimError("profile", f"the claim is for profile {claim.profile}, not {request.profile}")

    def _again(self, claim: Claim, csr: bytes) -> ClaimReply:
        """What the claim was used for, if this is the request that it was used for. Raises ClaimError."""
        asked, now = digest(csr), self._wall()
        for one in certificates_of(self._database, claim.device):
            if one.request == asked and one.state in ("pending", "active") and now < one.expires:
                return ClaimReply(one.pem)
        raise ClaimError("used", "the claim was used before, with another key")


def checked_request(csr: bytes, device: str) -> Request:
    """What is taken from a signing request of this device. Raises ClaimError."""
    try:
        asked = read_request(csr)
    except SignatureError as error:
        raise ClaimError("request", str(error)[:200]) from None
    if asked.name != device or not is_id(device):
        raise ClaimError("name", f"the signing request does not name {device[:40]}")
    return asked


def sign(authority: Authority, asked: Request, csr: bytes, days: int, now: float) -> tuple[bytes, Certificate]:
    """A new certificate: its chain, and its row, pending."""
    chain, serial, ends = authority.certify(asked, days, now=dt.datetime.fromtimestamp(now, dt.UTC))
    return chain, Certificate(serial, asked.name, now, ends, "pending", now, digest(csr), chain)
