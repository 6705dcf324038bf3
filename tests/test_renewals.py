"""Renewals as the server judges them: when a certificate takes the place of another, and when it does not."""

from contextlib import closing

import pytest

from claimoffice import HOUR, Office
from edgefl.identity.requests import check_answer, make_request
from edgefl.server.provision import provision
from edgefl.server.renewal import MOST_IN_AN_HOUR, ROTATE
from edgefl.store.credentials import ask_rotation, rotations
from edgefl.store.database import transaction
from edgefl.store.registry import get_device
from edgefl.wire.enrolment import Renewed


@pytest.fixture
def office(tmp_path):
    """A fleet of this test's own."""
    with closing(Office(tmp_path)) as office:
        yield office


@pytest.fixture
def settled(office):
    """A device whose certificate is in use."""
    office.ask(office.claim(), make_request("cam-01")[1])
    office.renew()
    assert office.states() == ["active"]
    return office


def test_both_certificates_are_good_until_the_new_one_is_seen(settled):
    """A renewal leaves the old one active; saying again that the old one is in use changes nothing; the new one replaces it."""
    key, csr = make_request("cam-01")
    answer = settled.renew(csr)
    check_answer(answer.certificate, key, "cam-01", settled.authority.root)
    assert settled.states() == ["active", "pending"]
    settled.renew()
    assert settled.states() == ["active", "pending"]
    settled.renew(using=settled.serials()[1])
    assert settled.states() == ["replaced", "active"]
    assert get_device(settled.database, "cam-01").certificate == settled.serials()[1]


def test_the_same_renewal_gets_the_same_certificate(settled):
    """A reply that was lost costs nothing."""
    _, csr = make_request("cam-01")
    assert settled.renew(csr) == settled.renew(csr)
    assert len(settled.states()) == 2


def test_a_device_that_went_back_is_believed(settled):
    """A device that says it uses the old one again, because the new one did not connect, is active with the old one."""
    settled.renew(make_request("cam-01")[1])
    settled.renew(using=settled.serials()[1])
    settled.renew(using=settled.serials()[0])
    assert settled.states() == ["active", "replaced"]


def test_renewals_are_bounded(settled):
    """A device gets a few certificates in an hour, and never has two that were not used yet."""
    codes = [settled.renew(make_request("cam-01")[1]).code for _ in range(MOST_IN_AN_HOUR + 2)]
    assert codes == [""] * (MOST_IN_AN_HOUR - 1) + ["busy"] * 3
    assert settled.states().count("pending") == 1
    settled.later = 2 * HOUR
    assert settled.renew(make_request("cam-01")[1]).code == ""


def test_a_renewal_for_another_device_is_refused(settled):
    """A device cannot get a certificate for another's id; that is written down."""
    assert settled.renew(make_request("cam-02")[1]).code == "name"
    assert settled.audit()[-1][0] == "renewal-refused"
    assert settled.states() == ["active"]


def test_a_revoked_certificate_stays_revoked(settled):
    """That a device says it uses it does not bring it back."""
    with transaction(settled.database):
        settled.database.execute("UPDATE certificates SET state = 'revoked'")
    assert settled.renew() is None
    assert settled.states() == ["revoked"]


def test_a_strangers_serial_changes_nothing(settled):
    """A serial number that is not the device's own is no news."""
    provision(settled.fleet, ["cam-02"], "rpi-zero-2w", settled.root / "bundles")
    assert settled.renew(using=settled.serials("cam-02")[0]) is None
    assert settled.renew(using="abc") is None
    assert settled.states() == ["active"]


def test_the_wish_to_rotate_is_told_until_it_is_done(settled):
    """It is news once, told again on each connection with the old certificate, and forgotten with the new one."""
    with transaction(settled.database):
        ask_rotation(settled.database, "cam-01", settled.wall())
    assert settled.renewals.news() == ["cam-01"]
    assert settled.renewals.news() == []
    assert settled.renew() == Renewed(code=ROTATE)
    settled.later = 5.0
    settled.renew(make_request("cam-01")[1])
    assert settled.renew(using=settled.serials()[1]) is None
    assert rotations(settled.database) == {}


def test_a_ready_bundle_can_rotate_too(office):
    """The first certificate that a board asks for takes the place of the one that came in its bundle."""
    provision(office.fleet, ["cam-01"], "rpi-zero-2w", office.root / "bundles")
    assert office.states() == ["active"]
    office.renew(make_request("cam-01")[1])
    office.renew(using=office.serials()[1])
    assert office.states() == ["replaced", "active"]
