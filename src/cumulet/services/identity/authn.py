"""Authentication: from what a client presents to a token, and from a token to who it is.

A token holds only ids; who its user is, whether it is enabled and which roles it has is looked up when the token is
used. Refusals are all alike (401), so that nobody learns which part was wrong.
"""

import msgspec

from cumulet.db import Database, Tx
from cumulet.kernel.clock import SECOND
from cumulet.kernel.errors import BadInput, Forbidden, Unauthorized
from cumulet.services.identity import assignments, store
from cumulet.services.identity.assignments import SYSTEM, Target
from cumulet.services.identity.passwords import Passwords
from cumulet.services.identity.schema import Auth, AuthApplicationCredential, AuthScope, AuthUser, DomainRef
from cumulet.services.identity.store import (
    AccessRuleRow,
    ApplicationCredentialRow,
    ProjectRow,
    RoleRow,
    TrustRow,
    UserRow,
)
from cumulet.services.identity.tokens import Payload, TokenCodec, token_payload

METHODS = ("password", "token", "application_credential")
REFUSED = "The request you have made requires authentication."


def refused() -> Unauthorized:
    return Unauthorized(REFUSED)


class Identified(msgspec.Struct):
    """Who presented valid proof, before the scope is settled."""

    user_id: str
    methods: list[str]
    token: Payload | None = None
    application_credential_id: str | None = None


class Resolved(msgspec.Struct):
    """Everything a valid token stands for now."""

    payload: Payload
    user: UserRow
    user_domain: ProjectRow
    project: ProjectRow | None = None
    project_domain: ProjectRow | None = None
    domain: ProjectRow | None = None
    system: bool = False
    roles: list[RoleRow] = []
    application_credential: ApplicationCredentialRow | None = None
    access_rules: list[AccessRuleRow] | None = None
    trust: TrustRow | None = None


class Authenticator:
    def __init__(self, db: Database, codec: TokenCodec, passwords: Passwords, *, token_ttl_s: int) -> None:
        self._db = db
        self._codec = codec
        self._passwords = passwords
        self._ttl = token_ttl_s * SECOND

    # -- from proof to token ---------------------------------------------------------------------------------

    def issue(self, auth: Auth) -> tuple[str, Resolved]:
        who = self._identify(auth)
        uses_trust = isinstance(auth.scope, AuthScope) and auth.scope.trust is not None
        unit = self._db.write if uses_trust else self._db.read
        resolved = unit(lambda tx: self._scoped(tx, who, auth.scope))
        return self._codec.encode(resolved.payload), resolved

    def _identify(self, auth: Auth) -> Identified:
        """Passwords and secrets are compared here, outside of any unit of work."""
        identity = auth.identity
        if not identity.methods:
            raise BadInput("At least one authentication method is needed.")
        found: Identified | None = None
        for method in dict.fromkeys(identity.methods):
            if method not in METHODS:
                raise Unauthorized(f"Authentication by {method!r} is not supported.")
            proof = getattr(identity, method)
            if proof is None:
                raise BadInput(f"The method {method!r} is named, and its data is missing.")
            if method == "password":
                mine = Identified(self.check_password(proof.user), ["password"])
            elif method == "token":
                payload = self.open(proof.id)
                mine = Identified(payload.user_id, ["token", *payload.methods], token=payload)
            else:
                credential = self._check_application_credential(proof)
                mine = Identified(
                    credential.user_id, ["application_credential"], application_credential_id=credential.id
                )
            if found is None:
                found = mine
            elif found.user_id != mine.user_id:
                raise refused()
            else:
                found.methods += mine.methods
                found.token = found.token or mine.token
                found.application_credential_id = found.application_credential_id or mine.application_credential_id
        assert found is not None
        found.methods = list(dict.fromkeys(found.methods))
        return found

    def check_password(self, given: AuthUser) -> str:
        if given.password is None:
            raise BadInput("The user's password is missing.")
        user = self._db.read(lambda tx: find_user(tx, given))
        if not self._passwords.matches(user.password_hash if user else None, given.password):
            raise refused()
        assert user is not None
        now = self._db.clock.now()
        if user.password_expires_at is not None and user.password_expires_at <= now:
            raise Unauthorized("The password is expired and needs to be changed.")
        return user.id

    def _check_application_credential(self, proof: AuthApplicationCredential) -> ApplicationCredentialRow:
        def find(tx: Tx) -> ApplicationCredentialRow | None:
            if proof.id is not None:
                return store.application_credentials.get(tx, proof.id)
            if proof.name is None or proof.user is None:
                raise BadInput("An application credential is named by its id, or by name and user.")
            user = find_user(tx, proof.user)
            return store.application_credentials.one(tx, user_id=user.id, name=proof.name) if user else None

        found = self._db.read(find)
        if not self._passwords.matches(found.secret_hash if found else None, proof.secret):
            raise refused()
        assert found is not None
        return found

    def _scoped(self, tx: Tx, who: Identified, scope: AuthScope | str | None) -> Resolved:
        user = store.users.get(tx, who.user_id)
        if user is None:
            raise refused()
        check_factors(user, who.methods)
        issued_at = max(tx.now, user.tokens_after + 1)  # even if the clock was set back since the last revocation
        expires_at = issued_at + self._ttl
        chain = None
        if who.token is not None:
            resolved = resolve(tx, who.token, tx.now)
            if resolved.application_credential is not None and scope is not None:
                raise Forbidden("A token of an application credential cannot be given another scope.")
            if who.token.trust_id is not None:
                raise Forbidden("A token of a trust cannot be used to get another token.")
            expires_at = min(expires_at, who.token.expires_at)
            chain = who.token.audit_ids[-1]
        credential_id = who.application_credential_id
        trust_id = None
        if isinstance(scope, AuthScope) and scope.trust is not None:
            trust = self._use_trust(tx, user, scope.trust.id)
            trust_id = trust.id
            target = ("project", trust.project_id) if trust.project_id else ("", "")
            if trust.impersonation:
                user = store.users.get(tx, trust.trustor_user_id) or user
            if trust.expires_at is not None:
                expires_at = min(expires_at, trust.expires_at)
        elif credential_id is not None:
            credential = store.application_credentials.get(tx, credential_id)
            if credential is None:
                raise refused()
            target = ("project", credential.project_id)
            asked = self._target(tx, user, scope) if isinstance(scope, AuthScope) else None
            if asked is not None and asked != target:
                raise refused()
            if credential.expires_at is not None:
                expires_at = min(expires_at, credential.expires_at)
        elif who.token is not None and scope is None and who.token.scope[0]:
            target = who.token.scope
            credential_id = who.token.application_credential_id
        else:
            target = self._target(tx, user, scope) or ("", "")
        payload = token_payload(
            user.id,
            tuple(who.methods),
            target,
            issued_at,
            expires_at,
            chain=chain,
            application_credential_id=credential_id,
            trust_id=trust_id,
        )
        return resolve(tx, payload, tx.now)

    def _use_trust(self, tx: Tx, trustee: UserRow, trust_id: str) -> TrustRow:
        if tx.writing:
            tx.lock("identity-trust", trust_id)  # uses are counted
        trust = store.trusts.get(tx, trust_id)
        if trust is None or trust.deleted_at is not None or trust.trustee_user_id != trustee.id:
            raise Forbidden("This trust cannot be used.")
        if trust.expires_at is not None and trust.expires_at <= tx.now:
            raise Forbidden("This trust cannot be used.")
        if trust.remaining_uses is not None:
            if trust.remaining_uses <= 0:
                raise Forbidden("This trust cannot be used any more.")
            trust.remaining_uses -= 1
            store.trusts.save(tx, trust)
        return trust

    def _target(self, tx: Tx, user: UserRow, scope: AuthScope | str | None) -> Target | None:
        """The scope asked for; without one, the user's default project if it has a role there."""
        if scope == "unscoped":
            return None
        if not isinstance(scope, AuthScope):
            default = user.default_project_id
            if default is not None and assignments.roles_on(tx, user.id, ("project", default)):
                project = store.projects.get(tx, default)
                if project is not None and project.enabled:
                    return ("project", default)
            return None
        asked = [kind for kind in (scope.project, scope.domain, scope.system) if kind is not None]
        if len(asked) != 1:
            raise BadInput("A scope names exactly one of project, domain, system or OS-TRUST:trust.")
        if scope.project is not None:
            project = find_project(tx, scope.project.id, scope.project.name, scope.project.domain)
            if project is None:
                raise refused()
            return ("project", project.id)
        if scope.domain is not None:
            domain = find_domain(tx, scope.domain)
            if domain is None:
                raise refused()
            return ("domain", domain.id)
        if not scope.system or not scope.system.get("all"):
            raise BadInput("The system scope is {'all': true}.")
        return SYSTEM

    # -- from token to caller ----------------------------------------------------------------------------------

    def open(self, token: str) -> Payload:
        """The content of a token that we issued and that has not expired; `Unauthorized` otherwise."""
        try:
            payload = self._codec.decode(token)
        except ValueError:
            raise refused() from None
        if payload.expires_at <= self._db.clock.now():
            raise refused()
        return payload


def check_factors(user: UserRow, methods: list[str]) -> None:
    """Users may demand several methods at once; rules that name methods we do not have are void, as upstream."""
    if not user.options.get("multi_factor_auth_enabled"):
        return
    rules = [rule for rule in user.options.get("multi_factor_auth_rules", []) if all(m in METHODS for m in rule)]
    if rules and not any(set(rule) <= set(methods) for rule in rules):
        raise Unauthorized("This user has to authenticate by several methods.")


def resolve(tx: Tx, payload: Payload, now: int) -> Resolved:
    """What the token stands for at this moment; `Unauthorized` when it stands for nothing any more."""
    user = store.users.get(tx, payload.user_id)
    if user is None or not user.enabled or payload.issued_at <= user.tokens_after or payload.expires_at <= now:
        raise refused()
    user_domain = store.projects.get(tx, user.domain_id)
    if user_domain is None or not user_domain.enabled or store.revoked(tx, payload.audit_ids[0]):
        raise refused()
    found = Resolved(payload, user, user_domain)
    kind, target_id = payload.scope
    if kind == "project":
        found.project = _enabled(store.projects.get(tx, target_id))
        if found.project.domain_id is not None:
            found.project_domain = _enabled(store.projects.get(tx, found.project.domain_id))
        else:
            found.project_domain = found.project
    elif kind == "domain":
        found.domain = _enabled(store.projects.get(tx, target_id))
    elif kind == "system":
        found.system = True
    role_user = user.id
    allowed: set[str] | None = None
    if payload.application_credential_id is not None:
        credential = store.application_credentials.get(tx, payload.application_credential_id)
        if credential is None or (credential.expires_at is not None and credential.expires_at <= now):
            raise refused()
        found.application_credential = credential
        allowed = set(assignments.expand(credential.roles, store.implied_roles(tx)))
        if credential.access_rules is not None:
            rows = [store.access_rules.get(tx, id) for id in credential.access_rules]
            found.access_rules = [row for row in rows if row is not None]
    if payload.trust_id is not None:
        trust = store.trusts.get(tx, payload.trust_id)
        if trust is None or trust.deleted_at is not None or (trust.expires_at is not None and trust.expires_at <= now):
            raise refused()
        for party in (trust.trustor_user_id, trust.trustee_user_id):
            row = store.users.get(tx, party)
            if row is None or not row.enabled:
                raise refused()
        found.trust = trust
        role_user = trust.trustor_user_id
        allowed = set(assignments.expand(trust.roles, store.implied_roles(tx)))
    if kind:
        role_ids = assignments.roles_on(tx, role_user, payload.scope)
        if allowed is not None:
            role_ids &= allowed
        if not role_ids:
            raise refused()
        found.roles = [row for row in store.roles.list(tx, domain_id=None) if row.id in role_ids]
        if not found.roles:
            raise refused()
    return found


def _enabled(row: ProjectRow | None) -> ProjectRow:
    if row is None or not row.enabled:
        raise refused()
    return row


# -- names ---------------------------------------------------------------------------------------------------------


def find_domain(tx: Tx, ref: DomainRef | None) -> ProjectRow | None:
    if ref is None:
        return None
    if ref.id is not None:
        row = store.projects.get(tx, ref.id)
        return row if row is not None and row.is_domain else None
    return store.projects.one(tx, name=ref.name, is_domain=True) if ref.name is not None else None


def find_user(tx: Tx, given: AuthUser) -> UserRow | None:
    if given.id is not None:
        return store.users.get(tx, given.id)
    if given.name is None:
        raise BadInput("A user is named by its id, or by name and domain.")
    if given.domain is None or (given.domain.id is None and given.domain.name is None):
        raise BadInput("A user named by its name needs a domain.")
    domain = find_domain(tx, given.domain)
    return store.users.one(tx, domain_id=domain.id, name=given.name) if domain is not None else None


def find_project(tx: Tx, id: str | None, name: str | None, domain: DomainRef | None) -> ProjectRow | None:
    if id is not None:
        return store.projects.get(tx, id)
    if name is None:
        raise BadInput("A project is named by its id, or by name and domain.")
    if domain is None or (domain.id is None and domain.name is None):
        raise BadInput("A project named by its name needs a domain.")
    found = find_domain(tx, domain)
    return store.projects.one(tx, domain_id=found.id, name=name, is_domain=False) if found is not None else None
