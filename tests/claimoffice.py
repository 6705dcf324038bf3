"""What the tests of claims and renewals share: a fleet's server that is asked by hand.

No test in here. A test module imports it by its name (`pythonpath` in pyproject.toml).
"""

import datetime as dt

from edgefl.server.claims import ClaimDesk
from edgefl.server.enrolment import Order
from edgefl.server.founding import authority_of, create_fleet
from edgefl.server.provision import provision_all
from edgefl.server.renewal import RenewalDesk
from edgefl.store.audit import events
from edgefl.store.credentials import certificates_of
from edgefl.store.database import open_database
from edgefl.wire.enrolment import ClaimRequest, RenewRequest
from edgefl.wire.messages import encode

HOUR = 3600.0
DAYS = 90


class Office:
    """A fleet whose server is asked by hand, at a time that the test sets."""

    def __init__(self, root):
        self.root = root
        self.fleet = create_fleet(root / "farm", name="farm")
        self.authority = authority_of(self.fleet)
        self.database = open_database(self.fleet.database)
        self.database.execute("PRAGMA synchronous=OFF")
        self.later = 0.0
        self.desk = ClaimDesk(self.database, self.authority, DAYS, wall=self.wall, clock=lambda: self.later)
        self.renewals = RenewalDesk(self.database, self.authority, DAYS, self.wall)

    def close(self):
        """Close its database."""
        self.database.close()

    def wall(self):
        """Seconds since 1970: now, and what the test adds."""
        return dt.datetime.now(dt.UTC).timestamp() + self.later

    def claim(self, device="cam-01", **options):
        """A new claim's token."""
        options = {"claim_seconds": HOUR, **options}
        (made,) = provision_all(self.fleet, [Order(device, "rpi-zero-2w")], self.root / f"out{self.wall()}", **options)
        return made.claim.token.encode()

    def ask(self, token, csr, device="cam-01", profile="rpi-zero-2w"):
        """The desk's reply."""
        return self.desk.answer(ClaimRequest(device, token, csr, profile))

    def audit(self, device="cam-01"):
        """Event and detail of everything that happened."""
        return [(one.event, one.detail) for one in events(self.database, device)]

    def states(self, device="cam-01"):
        """States of its certificates, oldest first."""
        return [one.state for one in certificates_of(self.database, device)]

    def serials(self, device="cam-01"):
        """Serial numbers of its certificates, oldest first."""
        return [one.serial for one in certificates_of(self.database, device)]

    def renew(self, csr=b"", device="cam-01", using=None):
        """The answer to a device's message."""
        return self.renewals.heard(device, encode(RenewRequest(using or self.serials(device)[0], csr)))
