"""Key pairs: making, reading and fingerprinting of SSH keys and X.509 certificates. Pure functions."""

import base64
import binascii
import hashlib
from datetime import UTC, datetime, timedelta

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cumulet.kernel.errors import BadInput

_KEY_BITS = 2048
_UPN = x509.ObjectIdentifier("1.3.6.1.4.1.311.20.2.3")


class KeyMaterial(msgspec.Struct):
    public_key: str
    fingerprint: str
    private_key: str | None = None


def import_key(kind: str, public_key: str) -> KeyMaterial:
    """Check a public key; BadInput if it is none."""
    text = public_key.strip()
    if kind == "x509":
        return KeyMaterial(public_key, _x509_fingerprint(text))
    return KeyMaterial(public_key, _ssh_fingerprint(text))


def generate(kind: str, name: str, user_id: str) -> KeyMaterial:
    key = rsa.generate_private_key(65537, _KEY_BITS)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8 if kind == "x509" else serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    ).decode()
    if kind == "x509":
        certificate = _certificate(key, user_id)
        return KeyMaterial(certificate, _x509_fingerprint(certificate), pem)
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    text = f"{public.decode()} Generated-by-Nova"
    return KeyMaterial(text, _ssh_fingerprint(text), pem)


def _colons(digest: str) -> str:
    return ":".join(digest[n : n + 2] for n in range(0, len(digest), 2))


def _ssh_fingerprint(text: str) -> str:
    """MD5 of the key blob, as OpenStack shows it."""
    words = text.split()
    try:
        if len(words) < 2:
            raise ValueError("no key data")
        blob = base64.b64decode(words[1], validate=True)
        serialization.load_ssh_public_key(f"{words[0]} {words[1]}".encode())
    except (ValueError, binascii.Error, UnsupportedAlgorithm, UnicodeEncodeError):
        raise BadInput("Keypair data is invalid: failed to generate fingerprint") from None
    return _colons(hashlib.md5(blob, usedforsecurity=False).hexdigest())


def _x509_fingerprint(text: str) -> str:
    try:
        certificate = x509.load_pem_x509_certificate(text.encode())
    except ValueError:
        raise BadInput("Keypair data is invalid: failed to generate X509 fingerprint.") from None
    return _colons(certificate.fingerprint(hashes.SHA1()).hex())


def _certificate(key: rsa.RSAPrivateKey, user_id: str) -> str:
    """A client certificate as WinRM takes it: the user as a user principal name."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, user_id[:64])])
    now = datetime.now(UTC)
    principal = f"{user_id}@localhost".encode()
    der = b"\x0c" + bytes([len(principal)]) + principal
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=3650))
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.OtherName(_UPN, der)]), critical=False)
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
