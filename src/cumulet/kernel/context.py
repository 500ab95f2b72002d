"""Who asks, for which project, under which request id. Immutable; made by the authentication layer."""

import msgspec

from cumulet.kernel.ids import new_request_id


class RequestContext(msgspec.Struct, frozen=True, kw_only=True):
    """The caller of one request. ``roles`` are role names in lower case, implied roles included."""

    request_id: str
    user_id: str | None = None
    user_name: str | None = None
    user_domain_id: str | None = None
    project_id: str | None = None
    project_name: str | None = None
    project_domain_id: str | None = None
    domain_id: str | None = None  # the scope, when the token is domain-scoped
    system_scope: str | None = None  # "all", when the token is system-scoped
    roles: frozenset[str] = frozenset()
    global_request_id: str | None = None
    token: str | None = None  # the encoded token, never logged
    audit_id: str | None = None
    expires_at: int | None = None  # microseconds since the epoch
    methods: tuple[str, ...] = ()
    access_rules: tuple[tuple[str, str, str], ...] | None = None  # (service type, method, path): the only ones allowed

    @property
    def is_admin(self) -> bool:
        return "admin" in self.roles

    def credentials(self) -> dict[str, object]:
        """The dictionary that policy rules look at (oslo.policy's ``creds``)."""
        return {
            "user_id": self.user_id,
            "project_id": self.project_id,
            "tenant_id": self.project_id,
            "domain_id": self.domain_id,
            "user_domain_id": self.user_domain_id,
            "project_domain_id": self.project_domain_id,
            "system_scope": self.system_scope,
            "roles": self.roles,
            "is_admin": self.is_admin,
        }


def system_context(purpose: str) -> RequestContext:
    """The context of work that the cloud does on its own account (reconcilers, set-up)."""
    return RequestContext(
        request_id=new_request_id(), user_id=None, user_name=f"cumulet:{purpose}", roles=frozenset({"admin"})
    )
