"""X.509 for hosts: an authority of the cloud's own, requests, certificates.

Pure functions over PEM text; keeps nothing. Keys are of the curve P-256, which every TLS library in use here speaks.
Fails with `ValueError` for what is not what it should be.
"""

import hashlib
import ipaddress
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_DAYS = 20 * 365
_EARLIER = timedelta(hours=1)  # clocks differ


class Issued(msgspec.Struct, frozen=True):
    certificate: str  # PEM
    serial: str  # hexadecimal
    fingerprint: str
    expires_at: int  # seconds since the epoch


def new_key() -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, form, plain).decode()


def new_authority(name: str, now: float) -> tuple[str, str]:
    """A self-signed certificate that may sign hosts', and its key."""
    text = new_key()
    key = _key(text)
    subject = _name(name)
    moment = datetime.fromtimestamp(now, UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment - _EARLIER)
        .not_valid_after(moment + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _pem(made), text


def request(key: str, name: str) -> str:
    """A signing request: it proves that its sender has the key. What the certificate says, the authority decides."""
    made = x509.CertificateSigningRequestBuilder().subject_name(_name(name)).sign(_key(key), hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()


def request_key_hash(csr: str) -> str:
    """Identifies the key of a request. ValueError if it is none, or not signed with that key."""
    return _key_hash(_request(csr).public_key())


def key_hash(key: str) -> str:
    return _key_hash(_key(key).public_key())


def sign(
    authority: str, authority_key: str, csr: str, *, name: str, addresses: Iterable[str], days: float, now: float
) -> Issued:
    """A certificate for client and server use; its subject is ``CN=name``. ``addresses``: IP addresses or DNS names
    under which the host is reached, beside its name."""
    names = x509.SubjectAlternativeName([_alternative(one) for one in dict.fromkeys([name, *addresses])])
    return _issue(authority, authority_key, _request(csr).public_key(), _name(name), names, days, now)


def renew(authority: str, authority_key: str, certificate: str, *, days: float, now: float) -> Issued:
    """One that says the same as ``certificate``, for longer. Whether its holder may have it, the caller knows."""
    old = x509.load_pem_x509_certificate(certificate.encode())
    try:
        names = old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise ValueError("the certificate names no host") from None
    return _issue(authority, authority_key, old.public_key(), old.subject, names, days, now)


def _issue(
    authority: str,
    authority_key: str,
    public_key: object,
    subject: x509.Name,
    names: x509.SubjectAlternativeName,
    days: float,
    now: float,
) -> Issued:
    assert isinstance(public_key, ec.EllipticCurvePublicKey)
    issuer = x509.load_pem_x509_certificate(authority.encode())
    moment = datetime.fromtimestamp(now, UTC)
    until = min(moment + timedelta(days=days), issuer.not_valid_after_utc)
    usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    signer = _key(authority_key)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment - _EARLIER)
        .not_valid_after(until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(usages, critical=False)
        .add_extension(names, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )
    text = _pem(made)
    return Issued(text, f"{made.serial_number:x}", fingerprint(text), int(until.timestamp()))


def life(certificate: str) -> tuple[float, float]:
    """From when until when a certificate is good: seconds since the epoch. ValueError if it is none."""
    loaded = x509.load_pem_x509_certificate(certificate.encode())
    return loaded.not_valid_before_utc.timestamp(), loaded.not_valid_after_utc.timestamp()


def fingerprint(certificate: str) -> str:
    """SHA-256 of a certificate, hexadecimal. ValueError if it is none."""
    loaded = x509.load_pem_x509_certificate(certificate.encode())
    return hashlib.sha256(loaded.public_bytes(serialization.Encoding.DER)).hexdigest()


def certified_key_hash(certificate: str) -> str:
    """Identifies the key a certificate is for."""
    return _key_hash(x509.load_pem_x509_certificate(certificate.encode()).public_key())


def _alternative(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=not signs,  # GnuTLS users as QEMU insist on it
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _key(text: str) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(text.encode(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("not an elliptic curve key")
    return key


def _request(csr: str) -> x509.CertificateSigningRequest:
    loaded = x509.load_pem_x509_csr(csr.encode())
    if not loaded.is_signature_valid or not isinstance(loaded.public_key(), ec.EllipticCurvePublicKey):
        raise ValueError("the request is not signed with its key, or the key is not of an elliptic curve")
    return loaded


def _key_hash(key: object) -> str:
    assert isinstance(key, ec.EllipticCurvePublicKey)
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(key.public_bytes(serialization.Encoding.DER, form)).hexdigest()


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()
