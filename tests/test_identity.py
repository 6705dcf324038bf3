import datetime as dt
import ssl
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefl.errors import FleetError, InputError, SignatureError
from edgefl.identity.authority import Authority, Identity, found_authority, open_authority
from edgefl.identity.signing import ASSIGNMENT, ROUND, Signer, verify
from edgefl.wire.messages import Signed, decode, encode

NOW = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
SIGNER = Signer.generate()


@pytest.fixture(scope="module")
def authority() -> Authority:
    """One authority for all tests of this file."""
    return found_authority("farm")[0]


def leaf(identity: Identity) -> x509.Certificate:
    """The identity's own certificate."""
    return x509.load_pem_x509_certificates(identity.certificate)[0]


def usages(certificate: x509.Certificate) -> list[x509.ObjectIdentifier]:
    """What a certificate may be used for."""
    return list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def test_a_device_certificate_says_who_it_is_and_can_only_be_a_client(authority: Authority) -> None:
    """Common name, URI name and key usage are what the broker and other systems rely on."""
    certificate = leaf(authority.device("cam-01", now=NOW))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "cam-01"
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://farm/device/cam-01"]
    assert usages(certificate) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert certificate.not_valid_before_utc == NOW - dt.timedelta(days=1)
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_the_broker_certificate_names_its_hosts_and_can_only_be_a_server(authority: Authority) -> None:
    """Host names and addresses are told apart; localhost and 127.0.0.1 are always there, once."""
    certificate = leaf(authority.broker(("hub.example", "192.0.2.7", "127.0.0.1")))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "hub.example"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "192.0.2.7"]
    assert usages(certificate) == [ExtendedKeyUsageOID.SERVER_AUTH]


def test_the_intermediate_cannot_make_further_authorities(authority: Authority) -> None:
    """Path length 0, signed by a root of path length 1."""
    intermediate = leaf(authority.intermediate).extensions.get_extension_for_class(x509.BasicConstraints)
    root = x509.load_pem_x509_certificate(authority.root).extensions.get_extension_for_class(x509.BasicConstraints)
    assert (intermediate.value.ca, intermediate.value.path_length, intermediate.critical) == (True, 0, True)
    assert (root.value.ca, root.value.path_length) == (True, 1)


def test_openssl_accepts_the_chain_in_strict_mode(authority: Authority, tmp_path: Path) -> None:
    """An independent verifier, at its strictest, agrees; and refuses a device certificate as a server's."""
    (tmp_path / "root.crt").write_bytes(authority.root)
    (tmp_path / "chain.crt").write_bytes(authority.intermediate.certificate)
    for identity, purpose, other in (
        (authority.device("cam-01"), "sslclient", "sslserver"),
        (authority.broker(), "sslserver", "sslclient"),
    ):
        (tmp_path / "leaf.crt").write_bytes(identity.certificate)
        base = ["openssl", "verify", "-x509_strict", "-CAfile", "root.crt", "-untrusted", "chain.crt"]
        right = subprocess.run([*base, "-purpose", purpose, "leaf.crt"], cwd=tmp_path, capture_output=True, check=False)
        wrong = subprocess.run([*base, "-purpose", other, "leaf.crt"], cwd=tmp_path, capture_output=True, check=False)
        assert right.returncode == 0, right.stderr
        assert wrong.returncode != 0


def test_python_loads_the_chain(authority: Authority, tmp_path: Path) -> None:
    """Key and certificate belong together, and the file holds leaf and intermediate."""
    device = authority.device("cam-01")
    (tmp_path / "key").write_bytes(device.key)
    (tmp_path / "crt").write_bytes(device.certificate)
    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(tmp_path / "crt", tmp_path / "key")
    assert device.certificate.count(b"BEGIN CERTIFICATE") == 2


def test_serial_numbers_and_keys_are_fresh(authority: Authority) -> None:
    """Two certificates for one name share nothing but the name."""
    first, second = authority.device("cam-01"), authority.device("cam-01")
    assert first.serial != second.serial
    assert first.key != second.key


@pytest.mark.parametrize("device", ["", "Cam", "a/b", "a+b", "#", "-a", "edgefl-server", "a" * 41])
def test_no_certificate_for_a_name_with_a_meaning(authority: Authority, device: str) -> None:
    """An id that could be a wildcard, a path or the server is never certified."""
    with pytest.raises(InputError):
        authority.device(device)


def test_no_log_shows_a_private_key(authority: Authority) -> None:
    """The representation of an identity leaves the key out."""
    assert "PRIVATE" not in repr(authority.device("cam-01"))
    assert "PRIVATE" not in repr(authority)


def test_a_damaged_authority_is_refused(authority: Authority) -> None:
    """Bytes that are no key, and a key of another certificate, are told apart from a working authority."""
    signer, stranger = authority.intermediate, found_authority("other")[0].intermediate
    assert open_authority("farm", authority.root, signer.key, signer.certificate).device("a").serial
    with pytest.raises(FleetError, match="damaged"):
        open_authority("farm", authority.root, b"nonsense", signer.certificate)
    with pytest.raises(FleetError, match="does not belong"):
        open_authority("farm", authority.root, stranger.key, signer.certificate)


@settings(max_examples=25, deadline=None)
@given(st.binary(max_size=300))
def test_what_was_signed_comes_back(payload: bytes) -> None:
    """Any payload survives signing, the wire and verification."""
    signed = decode(encode(SIGNER.sign(ASSIGNMENT, payload)), Signed)
    assert verify(signed, ASSIGNMENT, SIGNER.public_key) == payload


def test_the_signed_bytes_are_fixed() -> None:
    """Golden vector: a fixed key signs fixed bytes to this signature (RFC 8032 is deterministic)."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    assert Signer(key).sign("round", b"payload").signature == key.sign(b"edgefl\0round\0payload")
    assert Signer(key).public_key.hex() == "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8"


def test_each_way_to_be_wrong_has_its_own_words() -> None:
    """Wrong purpose, wrong key and changed bytes are told apart."""
    signed = SIGNER.sign(ROUND, b"order")
    with pytest.raises(SignatureError, match="another purpose"):
        verify(signed, ASSIGNMENT, SIGNER.public_key)
    with pytest.raises(SignatureError, match="not trusted"):
        verify(signed, ROUND, Signer.generate().public_key)
    with pytest.raises(SignatureError, match="does not hold"):
        verify(Signed(ROUND, b"other", signed.key, signed.signature), ROUND, SIGNER.public_key)
    with pytest.raises(SignatureError, match="32 bytes"):
        verify(signed, ROUND, b"short")


def test_a_relabelled_message_is_refused() -> None:
    """The purpose is inside the signature: writing another on the envelope does not help."""
    signed = SIGNER.sign(ROUND, b"order")
    with pytest.raises(SignatureError, match="does not hold"):
        verify(Signed(ASSIGNMENT, signed.payload, signed.key, signed.signature), ASSIGNMENT, SIGNER.public_key)


def test_a_lying_key_name_gains_nothing() -> None:
    """A forger who writes the trusted key's name beside his own signature is refused."""
    forged = Signer.generate().sign(ASSIGNMENT, b"x")
    with pytest.raises(SignatureError, match="does not hold"):
        verify(Signed(ASSIGNMENT, b"x", SIGNER.public_key.hex()[:16], forged.signature), ASSIGNMENT, SIGNER.public_key)


def test_a_key_survives_its_file_and_others_are_refused(authority: Authority) -> None:
    """PEM and back; a certificate's key or noise is no signing key."""
    assert Signer.from_pem(SIGNER.to_pem()).public_key == SIGNER.public_key
    with pytest.raises(FleetError, match="wrong kind"):
        Signer.from_pem(authority.intermediate.key)
    with pytest.raises(FleetError, match="damaged"):
        Signer.from_pem(b"")
