"""Signing requests and the answers to them: every way to ask wrongly, and what a board believes."""

from contextlib import closing

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from claimoffice import Office
from edgefl.errors import SignatureError
from edgefl.identity.requests import check_answer, make_request, read_request
from edgefl.server.founding import create_fleet


@pytest.fixture
def office(tmp_path):
    """A fleet of this test's own."""
    with closing(Office(tmp_path)) as office:
        yield office


def rsa_request(name="cam-01"):
    """A valid request for a key that boards do not use."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return request_of(key, name)


def request_of(key, *names, extensions=()):
    """A request with these common names, and extensions that it asks for."""
    builder = x509.CertificateSigningRequestBuilder()
    builder = builder.subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names]))
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def new_key(curve=ec.SECP256R1):
    """A fresh key."""
    return ec.generate_private_key(curve())


def with_bad_signature():
    """A request whose last byte, inside the signature, was changed."""
    csr = make_request("cam-01")[1]
    return csr[:-1] + bytes([csr[-1] ^ 1])


def with_another_key():
    """A request with one key inside and the signature of another: whoever sends it does not have the key."""
    ours, theirs = new_key(), new_key()
    der = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    csr = request_of(ours, "cam-01")
    changed = csr.replace(ours.public_key().public_bytes(*der), theirs.public_key().public_bytes(*der))
    assert changed != csr
    return changed


REQUESTS = {
    "name": lambda: make_request("cam-02")[1],
    "request RSA": rsa_request,
    "request P-384": lambda: request_of(new_key(ec.SECP384R1), "cam-01"),
    "request bad signature": with_bad_signature,
    "request another's key": with_another_key,
    "request two names": lambda: request_of(new_key(), "cam-01", "cam-02"),
    "request no name": lambda: request_of(new_key()),
    "request nonsense": lambda: b"\x30\x03\x02\x01\x00",
    "request PEM": lambda: b"-----BEGIN CERTIFICATE REQUEST-----\n",
}


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_wrong_signing_request_is_refused(office, kind):
    """Each wrong request gets its code, is written down, gives nothing out, and leaves the claim open for the right one."""
    token = office.claim()
    refused = office.ask(token, REQUESTS[kind]())
    assert (refused.certificate, refused.code) == (b"", kind.split()[0])
    assert office.audit()[-1][0] == "claim-refused"
    assert office.states() == []
    assert office.ask(token, make_request("cam-01")[1]).code == ""


def test_what_a_request_asks_for_is_ignored(office):
    """A request for the rights of an authority, a server and other names gives a plain device's certificate."""
    key = new_key()
    wishes = (
        x509.BasicConstraints(ca=True, path_length=3),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
        x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.UniformResourceIdentifier("spiffe://farm/device/cam-99")]),
    )
    reply = office.ask(office.claim(), request_of(key, "cam-01", extensions=wishes))
    own = x509.load_pem_x509_certificates(reply.certificate)[0]
    value = {type(one.value): one.value for one in own.extensions}
    assert not value[x509.BasicConstraints].ca
    assert list(value[x509.ExtendedKeyUsage]) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert value[x509.SubjectAlternativeName].get_values_for_type(x509.UniformResourceIdentifier) == [
        "spiffe://farm/device/cam-01"
    ]
    assert value[x509.SubjectAlternativeName].get_values_for_type(x509.DNSName) == []


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_garbage_is_no_request(data):
    """Whatever bytes come as a signing request, the answer is one named error."""
    with pytest.raises(SignatureError):
        read_request(data)


def test_an_answer_for_another_key_is_not_believed(office):
    """A board takes a certificate only for its own key and id, from its own fleet."""
    token, (key, csr) = office.claim(), make_request("cam-01")
    chain = office.ask(token, csr).certificate
    stranger = create_fleet(office.root / "other", name="farm")
    for wrong in (
        (chain, make_request("cam-01")[0], "cam-01", office.authority.root),
        (chain, key, "cam-02", office.authority.root),
        (chain, key, "cam-01", stranger.root_certificate.read_bytes()),
        (chain[: len(chain) // 2], key, "cam-01", office.authority.root),
    ):
        with pytest.raises(SignatureError):
            check_answer(*wrong)
