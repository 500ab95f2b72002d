"""How a machine becomes a host of this cloud: a one-time token, a certificate, an account at the broker.

A token is ``ID.SECRET.FINGERPRINT``: the secret is kept only as a hash, the fingerprint is that of the cloud's
authority, so that the machine knows from the first answer whether it talks to the right cloud. It is good once, for a
limited time; the machine whose key took it may ask again (its answer may have been lost), no other.
Refuses: a name that another machine holds, unless the token was made for that name; joining a cloud whose bus is
inside its one process, or whose broker this cloud may not make accounts at.
"""

import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from cumulet import __version__
from cumulet.agent.contract import Certified, RenewCertificate
from cumulet.db import Database, Tx
from cumulet.kernel import pki
from cumulet.kernel.clock import SECOND, Clock, iso
from cumulet.kernel.errors import BadInput, Conflict, Forbidden, NotFound
from cumulet.kernel.ids import new_hex
from cumulet.services.hosts import store
from cumulet.services.hosts.schema import JoinRequest, NewToken
from cumulet.services.hosts.store import CertificateRow, TokenRow
from cumulet.settings import Settings

ROLES = ("compute", "network", "storage")
_TOKENS_KEPT_US = 30 * 86_400 * SECOND


class Accounts(Protocol):
    def ensure(self, host: str, password: str) -> str: ...

    def remove(self, host: str) -> None: ...

    def hosts(self) -> list[str]: ...


class Joining:
    def __init__(self, db: Database, clock: Clock, settings: Settings, accounts: Accounts | None) -> None:
        self.db = db
        self.clock = clock
        self.settings = settings
        self.accounts = accounts

    # -- the authority ------------------------------------------------------------------------------------------------

    def authority(self) -> tuple[str, str]:
        """Certificate and key, made by who asks first."""
        found = self.db.read(store.authority)
        if found is None:
            made = pki.new_authority(f"Cumulet {self.settings.api.region}", self.clock.now() / SECOND)
            found = self.db.write(lambda tx: self._keep(tx, made))
        return found

    def _keep(self, tx: Tx, made: tuple[str, str]) -> tuple[str, str]:
        tx.lock("host-authority", "1")
        found = store.authority(tx)
        if found is None:
            store.add_authority(tx, *made)
            found = made
        return found

    # -- tokens -------------------------------------------------------------------------------------------------------

    def create_token(self, wanted: NewToken, user_id: str | None) -> dict[str, Any]:
        roles = _roles(wanted.roles) if wanted.roles is not None else None
        secret = secrets.token_urlsafe(32)
        token_id = new_hex()[:12]
        fingerprint = pki.fingerprint(self.authority()[0])

        def work(tx: Tx) -> TokenRow:
            store.prune_tokens(tx, tx.now - _TOKENS_KEPT_US)
            expires = tx.now + int(wanted.hours * 3600) * SECOND
            row = TokenRow(token_id, _hash(secret), wanted.host, roles, user_id, tx.now, expires, None, None, None)
            store.add_token(tx, row)
            return row

        return {**_shown(self.db.write(work)), "token": f"{token_id}.{secret}.{fingerprint}"}

    def tokens(self) -> list[dict[str, Any]]:
        return [_shown(row) for row in self.db.read(store.tokens)]

    def delete_token(self, token_id: str) -> None:
        if not self.db.write(lambda tx: store.delete_token(tx, token_id)):
            raise NotFound(f"Token {token_id} could not be found.")

    # -- joining ------------------------------------------------------------------------------------------------------

    def join(self, wanted: JoinRequest) -> dict[str, Any]:
        """What makes the machine a host. Certificate and token in one transaction, the broker's account after it: when
        that fails the machine asks again."""
        if self.accounts is None:
            cure = (
                "its message bus is inside its one process: set [bus] url to a RabbitMQ"
                if self.settings.bus.url.startswith("local")
                else "it may not make accounts at its broker: set [bus] management_url"
            )
            raise Conflict(f"Hosts cannot join this cloud: {cure}.")
        authority, authority_key = self.authority()
        try:
            key = pki.request_key_hash(wanted.csr)
        except ValueError:
            raise BadInput("csr is not a signing request made with its own key.") from None
        addresses = [_address(one) for one in (wanted.ip, wanted.tunnel_ip) if one]
        roles = _roles(wanted.roles)
        issued = pki.sign(
            authority, authority_key, wanted.csr,
            name=wanted.host, addresses=addresses, days=self.settings.tls.host_certificate_days,
            now=self.clock.now() / SECOND,
        )  # fmt: skip
        self.db.write(lambda tx: self._admit(tx, wanted, key, roles, issued))
        password = secrets.token_urlsafe(24)
        account = self.accounts.ensure(wanted.host, password)
        return {
            "host": wanted.host,
            "roles": roles,
            "version": __version__,
            "authority": authority,
            "trust": authority + self._trusted(),
            "certificate": issued.certificate,
            "bus_url": self._bus_url(account, password, wanted.host),
        }

    def _admit(self, tx: Tx, wanted: JoinRequest, key: str, roles: list[str], issued: pki.Issued) -> None:
        tx.lock("host-join", wanted.host)
        row = store.token(tx, wanted.token_id)
        if row is None or not hmac.compare_digest(row.secret_hash, _hash(wanted.secret)):
            raise Forbidden("The token is not one of this cloud's.")
        if row.expires_at < tx.now:
            raise Forbidden("The token has expired.")
        if row.used_key not in (None, key) or row.used_by not in (None, wanted.host):
            raise Forbidden("The token has been used.")
        if row.host is not None and row.host != wanted.host:
            raise Forbidden(f"The token is for host {row.host}.")
        if row.roles is not None and not set(roles) <= set(row.roles):
            raise Forbidden(f"The token is for the roles {', '.join(row.roles)}.")
        holders = {certificate.key_hash for certificate in store.valid_of(tx, wanted.host)}
        if holders - {key} and row.host != wanted.host:
            raise Conflict(f"Another machine is host {wanted.host}. Remove that host, or make a token for this name.")
        store.use_token(tx, row.id, wanted.host, key)
        store.revoke(tx, wanted.host)
        store.add_certificate(tx, _row(tx, wanted.host, key, issued))

    # -- renewing -----------------------------------------------------------------------------------------------------

    def renew(self, asked: RenewCertificate) -> Certified:
        """A host whose certificate nears its end gets one that says the same for longer. Only for one that is good, was
        not revoked, and whose key the request is signed with. The answer may be lost: the one it was asked with stays
        good until it ends or the next one is asked with."""
        try:
            fingerprint, key = pki.fingerprint(asked.certificate), pki.request_key_hash(asked.csr)
            if key != pki.certified_key_hash(asked.certificate):
                raise ValueError("the request is not signed with the certificate's key")
        except ValueError as error:
            raise BadInput(f"The certificate of host {asked.host} is not renewed: {error}.") from None
        days, now = self.settings.tls.host_certificate_days, self.clock.now() / SECOND
        issued = pki.renew(*self.authority(), asked.certificate, days=days, now=now)

        def work(tx: Tx) -> None:
            tx.lock("host-join", asked.host)
            held = {row.fingerprint: row for row in store.valid_of(tx, asked.host)}
            if fingerprint not in held or held[fingerprint].expires_at < tx.now:
                raise Forbidden(f"The certificate of host {asked.host} has ended or was revoked: it joins again.")
            store.revoke(tx, asked.host, but=fingerprint)
            store.add_certificate(tx, _row(tx, asked.host, key, issued))

        self.db.write(work)
        return Certified(certificate=issued.certificate)

    def _trusted(self) -> str:
        """Whom this control plane itself believes (the broker's authority, as a rule)."""
        return Path(self.settings.tls.ca).read_text() if self.settings.tls.ca else ""

    def _bus_url(self, account: str, password: str, host: str) -> str:
        parts = urlsplit(self.settings.bus.url)
        options = {**dict(parse_qsl(parts.query)), "as": host}
        user = f"{quote(account, safe='')}:{quote(password, safe='')}"
        addresses = parts.netloc.rpartition("@")[2]
        return f"{parts.scheme}://{user}@{addresses}{parts.path}?{urlencode(options)}"

    # -- after it -----------------------------------------------------------------------------------------------------

    def admits(self, tx: Tx, host: str) -> bool:
        """May a host of this name be heard? Not one whose certificates were all revoked: it was removed."""
        return bool(store.valid_of(tx, host)) or not store.ever_certified(tx, host)

    def leave(self, tx: Tx, host: str) -> bool:
        """Revoke what the host was given, and what it is just being given; True if it had joined."""
        tx.lock("host-join", host)
        return bool(store.revoke(tx, host))

    def reconcile_accounts(self) -> str | None:
        """Accounts of hosts that left are removed from the broker."""
        if self.accounts is None:
            return None
        members = {row.host for row in self.db.read(store.valid)}
        left = sorted(set(self.accounts.hosts()) - members)
        for host in left:
            # one that joined since the look has its certificate by now
            if not self.db.read(lambda tx, h=host: store.valid_of(tx, h)):  # type: ignore[misc]
                self.accounts.remove(host)
        return f"{len(left)} accounts removed" if left else None


def _row(tx: Tx, host: str, key: str, issued: pki.Issued) -> CertificateRow:
    return CertificateRow(issued.serial, host, issued.fingerprint, key, tx.now, issued.expires_at * SECOND, None)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _roles(roles: Iterable[str]) -> list[str]:
    unknown = sorted(set(roles) - set(ROLES))
    if unknown or not roles:
        raise BadInput(f"roles are some of {', '.join(ROLES)}" + (f", not {', '.join(unknown)}." if unknown else "."))
    return [role for role in ROLES if role in set(roles)]


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise BadInput(f"{text!r} is not an IP address.") from None


def _shown(row: TokenRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "host": row.host,
        "roles": row.roles,
        "created_at": iso(row.created_at),
        "expires_at": iso(row.expires_at),
        "used_at": iso(row.used_at),
        "used_by": row.used_by,
    }
