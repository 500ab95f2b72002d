"""What the rest of Cumulet may ask of identity."""

import threading
from typing import Any

import msgspec

from cumulet.db import Database, Tx
from cumulet.kernel.clock import SECOND
from cumulet.kernel.context import RequestContext
from cumulet.kernel.errors import NotFound, Unauthorized
from cumulet.services.identity import catalog, store
from cumulet.services.identity.authn import Authenticator, Resolved, refused, resolve
from cumulet.services.identity.bootstrap import Bootstrapped, CatalogEntry, bootstrap
from cumulet.services.identity.passwords import Passwords
from cumulet.services.identity.store import ProjectRow, UserRow
from cumulet.services.identity.tokens import TOKEN_KEY_PERIOD, KeyRing, TokenCodec

_CACHED_TOKENS = 4096


class _Known(msgspec.Struct):
    """A token met before, with the epochs under which its context was computed."""

    context: RequestContext
    resolved: Resolved
    user_key: str
    epochs: list[tuple[str, int]]


class IdentityService:
    """``settings``: token lifetime, argon2 cost (tests lower it), region name for bootstrapped endpoints."""

    def __init__(
        self,
        db: Database,
        *,
        token_ttl_s: int = 3600,
        passwords: Passwords | None = None,
        region: str = "RegionOne",
    ) -> None:
        self.db = db
        self.region = region
        self.token_ttl_s = token_ttl_s
        self.passwords = passwords or Passwords()
        self.token_keys = KeyRing(db, "token")
        self.credential_keys = KeyRing(db, "credential")
        self.codec = TokenCodec(self.token_keys)
        self.authn = Authenticator(db, self.codec, self.passwords, token_ttl_s=token_ttl_s)
        self._known: dict[str, _Known] = {}
        self._known_lock = threading.Lock()

    # -- tokens ------------------------------------------------------------------------------------------------

    def authenticate(self, token: str, request_id: str) -> RequestContext:
        """The caller that a token stands for now; `Unauthorized` when it is not valid. One indexed read for a token
        met before: it tells whether anything was changed that could matter to it, by any process."""
        return msgspec.structs.replace(self._lookup(token).context, request_id=request_id)

    def resolve(self, token: str) -> Resolved:
        """A token with everything it stands for; `Unauthorized` when it is not valid."""
        return self._lookup(token).resolved

    def _lookup(self, token: str) -> _Known:
        known = self._known.get(token)
        if known is not None:
            expires_at = known.context.expires_at
            if expires_at is not None and expires_at > self.db.clock.now():
                rows = self.db.glance(store.EPOCHS_OF, {"user": known.user_key})
                if [tuple(row) for row in rows] == known.epochs:
                    return known
            self._known.pop(token, None)
        payload = self.authn.open(token)

        def look(tx: Tx) -> tuple[list[tuple[str, int]], Resolved]:
            epochs = store.epochs(tx, payload.user_id)  # before the facts: a change in between is seen at the next use
            return epochs, resolve(tx, payload, tx.now)

        epochs, resolved = self.db.read(look)
        known = _Known(context_of(resolved, token, ""), resolved, f"user:{payload.user_id}", epochs)
        with self._known_lock:
            if len(self._known) >= _CACHED_TOKENS:
                self._known.clear()
            self._known[token] = known
        return known

    def forget(self) -> None:
        """The database was replaced by another state of itself: what is remembered of tokens and keys is void."""
        with self._known_lock:
            self._known.clear()
        self.token_keys.forget()
        self.credential_keys.forget()

    def revoke(self, token: str) -> None:
        """This token, everywhere, from now on."""
        payload = self.authn.open(token)

        def work(tx: Tx) -> None:
            store.revoke(tx, payload.audit_ids[0], payload.expires_at)
            store.bump(tx, f"user:{payload.user_id}")

        self.db.write(work)

    def maintain(self) -> None:
        """What a reconciler calls now and then: rotates token keys, forgets revocations of expired tokens."""

        def work(tx: Tx) -> None:
            self.token_keys.rotate(tx, period=TOKEN_KEY_PERIOD, keep=2 * self.token_ttl_s * SECOND)
            store.purge_revocations(tx)

        self.db.write(work)

    # -- for other services --------------------------------------------------------------------------------------

    def project(self, tx: Tx, project_id: str) -> ProjectRow:
        found = store.projects.get(tx, project_id)
        if found is None:
            raise NotFound(f"Could not find project: {project_id}.")
        return found

    def user(self, tx: Tx, user_id: str) -> UserRow:
        found = store.users.get(tx, user_id)
        if found is None:
            raise NotFound(f"Could not find user: {user_id}.")
        return found

    def project_ids(self, tx: Tx) -> list[str]:
        return [row.id for row in store.projects.list(tx, is_domain=False)]

    def catalog(self, tx: Tx, project_id: str | None, user_id: str | None) -> list[dict[str, Any]]:
        return catalog.build(tx, project_id, user_id)

    # -- set-up ----------------------------------------------------------------------------------------------------

    def bootstrap(
        self,
        *,
        admin_password: str,
        catalog: list[CatalogEntry] | None = None,
        public_url: str = "http://127.0.0.1:8774",
        demo_password: str | None = None,
    ) -> Bootstrapped:
        """The default domain, roles, the admin project and user, the catalog, and with a ``demo_password`` the demo
        project and user. Safe to call again: what exists stays, passwords included; URLs follow ``public_url``."""
        return bootstrap(
            self.db,
            self.passwords,
            region=self.region,
            admin_password=admin_password,
            demo_password=demo_password,
            public_url=public_url,
            catalog=catalog,
        )

    def set_password(self, user_id: str, password: str) -> None:
        """For operators at the machine; revokes the user's tokens."""
        hashed = self.passwords.hash(password)

        def work(tx: Tx) -> None:
            store.lock(tx)
            row = self.user(tx, user_id)
            row.password_hash, row.tokens_after = hashed, tx.now
            store.users.save(tx, row)
            store.bump(tx, f"user:{user_id}")

        self.db.write(work)

    def find_user(self, name: str, domain_id: str = "default") -> UserRow | None:
        return self.db.read(lambda tx: store.users.one(tx, domain_id=domain_id, name=name))

    def find_project(self, name: str, domain_id: str = "default") -> ProjectRow | None:
        return self.db.read(lambda tx: store.projects.one(tx, domain_id=domain_id, name=name, is_domain=False))


def context_of(found: Resolved, token: str, request_id: str) -> RequestContext:
    project, domain = found.project, found.domain
    return RequestContext(
        request_id=request_id,
        user_id=found.user.id,
        user_name=found.user.name,
        user_domain_id=found.user.domain_id,
        project_id=project.id if project else None,
        project_name=project.name if project else None,
        project_domain_id=found.project_domain.id if found.project_domain else None,
        domain_id=domain.id if domain else None,
        system_scope="all" if found.system else None,
        roles=frozenset(role.name.lower() for role in found.roles),
        token=token,
        audit_id=found.payload.audit_ids[0],
        expires_at=found.payload.expires_at,
        methods=found.payload.methods,
        access_rules=None
        if found.access_rules is None
        else tuple((rule.service or "", rule.method or "", rule.path or "") for rule in found.access_rules),
    )


__all__ = ["Bootstrapped", "CatalogEntry", "IdentityService", "Unauthorized", "refused"]
