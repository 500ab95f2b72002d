"""Bodies and queries of the identity API. Unknown keys are kept as extra attributes where keystone keeps them."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

Id64 = Annotated[str, Meta(min_length=1, max_length=64)]
Name64 = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"\S")]
Name255 = Annotated[str, Meta(min_length=1, max_length=255, pattern=r"\S")]
Type255 = Annotated[str, Meta(min_length=1, max_length=255)]
Description = Annotated[str, Meta(max_length=65535)]
ShortDescription = Annotated[str, Meta(max_length=255)]
Url = Annotated[str, Meta(min_length=1, max_length=225)]
Tag = Annotated[str, Meta(min_length=1, max_length=255, pattern=r"^[^,/]*$")]
Tags = Annotated[list[Tag], Meta(max_length=80)]
Interface = Literal["admin", "internal", "public"]
Region = Annotated[str, Meta(max_length=255)]
LimitNumber = Annotated[int, Meta(ge=-1, le=2147483647)]
Password = Annotated[str, Meta(max_length=4096)]
Maybe = UnsetType


class Immutable(Struct, forbid_unknown_fields=True):
    immutable: bool | Maybe | None = UNSET


class UserOptions(Struct, forbid_unknown_fields=True):
    ignore_change_password_upon_first_use: bool | Maybe | None = UNSET
    ignore_password_expiry: bool | Maybe | None = UNSET
    ignore_lockout_failure_attempts: bool | Maybe | None = UNSET
    lock_password: bool | Maybe | None = UNSET
    ignore_user_inactivity: bool | Maybe | None = UNSET
    multi_factor_auth_rules: list[Annotated[list[str], Meta(min_length=1)]] | Maybe | None = UNSET
    multi_factor_auth_enabled: bool | Maybe | None = UNSET


# -- authentication ----------------------------------------------------------------------------------------


class DomainRef(Struct):
    id: str | None = None
    name: str | None = None


class ProjectRef(Struct):
    id: str | None = None
    name: str | None = None
    domain: DomainRef | None = None


class AuthUser(Struct):
    id: str | None = None
    name: str | None = None
    domain: DomainRef | None = None
    password: Password | None = None


class AuthPassword(Struct):
    user: AuthUser


class AuthToken(Struct):
    id: str


class AuthApplicationCredential(Struct):
    secret: Password
    id: str | None = None
    name: str | None = None
    user: AuthUser | None = None


class AuthIdentity(Struct):
    methods: list[str]
    password: AuthPassword | None = None
    token: AuthToken | None = None
    application_credential: AuthApplicationCredential | None = None


class TrustRef(Struct):
    id: str


class AuthScope(Struct):
    project: ProjectRef | None = None
    domain: DomainRef | None = None
    system: dict[str, bool] | None = None
    trust: TrustRef | None = msgspec.field(default=None, name="OS-TRUST:trust")


class Auth(Struct):
    identity: AuthIdentity
    scope: AuthScope | Literal["unscoped"] | None = None


# -- projects and domains ------------------------------------------------------------------------------------


class NewProject(Struct):
    name: Name64
    description: Description | None = None
    domain_id: Id64 | None = None
    parent_id: Id64 | None = None
    enabled: bool = True
    is_domain: bool = False
    tags: Tags = []
    options: Immutable = msgspec.field(default_factory=Immutable)


class ProjectChange(Struct):
    name: Name64 | Maybe = UNSET
    description: Description | Maybe | None = UNSET
    domain_id: Id64 | Maybe | None = UNSET
    parent_id: Id64 | Maybe | None = UNSET
    enabled: bool | Maybe = UNSET
    is_domain: bool | Maybe = UNSET
    tags: Tags | Maybe = UNSET
    options: Immutable | Maybe = UNSET


class NewDomain(Struct):
    name: Name64
    explicit_domain_id: Annotated[str, Meta(pattern="^[a-fA-F0-9]{32}$")] | None = None
    description: ShortDescription | None = None
    enabled: bool = True
    tags: Tags = []
    options: Immutable = msgspec.field(default_factory=Immutable)


class DomainChange(Struct):
    name: Name64 | Maybe = UNSET
    description: ShortDescription | Maybe | None = UNSET
    enabled: bool | Maybe = UNSET
    tags: Tags | Maybe = UNSET
    options: Immutable | Maybe = UNSET


class ProjectTags(Struct, forbid_unknown_fields=True):
    tags: Tags


# -- users and groups ------------------------------------------------------------------------------------------


class NewUser(Struct):
    name: Name255
    domain_id: Id64 | None = None
    default_project_id: str | None = None
    enabled: bool = True
    password: Password | None = None
    options: UserOptions = msgspec.field(default_factory=UserOptions)


class UserChange(Struct):
    name: Name255 | Maybe = UNSET
    domain_id: Id64 | Maybe = UNSET
    default_project_id: str | Maybe | None = UNSET
    enabled: bool | Maybe = UNSET
    password: Password | Maybe | None = UNSET
    options: UserOptions | Maybe = UNSET


class PasswordChange(Struct):
    password: Password
    original_password: Password


class NewGroup(Struct):
    name: Name255
    domain_id: Id64 | None = None
    description: Description | None = None


class GroupChange(Struct):
    name: Name255 | Maybe = UNSET
    description: Description | Maybe | None = UNSET
    domain_id: Id64 | Maybe = UNSET


# -- roles -------------------------------------------------------------------------------------------------------


class NewRole(Struct):
    name: Name255
    description: Description | None = None
    domain_id: Id64 | None = None
    options: Immutable = msgspec.field(default_factory=Immutable)


class RoleChange(Struct):
    name: Name255 | Maybe = UNSET
    description: Description | Maybe | None = UNSET
    domain_id: Id64 | Maybe | None = UNSET
    options: Immutable | Maybe = UNSET


# -- the catalog ---------------------------------------------------------------------------------------------------


class NewService(Struct):
    type: Type255
    name: Annotated[str, Meta(max_length=255)] | Maybe | None = UNSET
    description: Description | Maybe | None = UNSET
    enabled: bool = True


class ServiceChange(Struct):
    type: Type255 | Maybe = UNSET
    name: Annotated[str, Meta(max_length=255)] | Maybe | None = UNSET
    description: Description | Maybe | None = UNSET
    enabled: bool | Maybe = UNSET


class NewRegion(Struct):
    id: Region | None = None
    description: ShortDescription | None = None
    parent_region_id: Region | None = None


class RegionChange(Struct):
    id: Region | Maybe | None = UNSET
    description: ShortDescription | Maybe | None = UNSET
    parent_region_id: Region | Maybe | None = UNSET


class NewEndpoint(Struct):
    interface: Interface
    service_id: Id64
    url: Url
    region_id: Region | None = None
    region: Region | None = None
    enabled: bool = True


class EndpointChange(Struct):
    interface: Interface | Maybe = UNSET
    service_id: Id64 | Maybe = UNSET
    url: Url | Maybe = UNSET
    region_id: Region | Maybe | None = UNSET
    region: Region | Maybe | None = UNSET
    enabled: bool | Maybe = UNSET


# -- credentials -----------------------------------------------------------------------------------------------------


class NewCredential(Struct):
    blob: Annotated[str, Meta(max_length=65535)]
    type: Annotated[str, Meta(min_length=1, max_length=255)]
    user_id: Id64
    project_id: Annotated[str, Meta(max_length=64)] | None = None
    id: str | None = None


class CredentialChange(Struct):
    blob: Annotated[str, Meta(max_length=65535)] | Maybe = UNSET
    type: Annotated[str, Meta(min_length=1, max_length=255)] | Maybe = UNSET
    user_id: Id64 | Maybe = UNSET
    project_id: Annotated[str, Meta(max_length=64)] | Maybe | None = UNSET


class NewEc2Credential(Struct):
    tenant_id: Id64


class RoleRef(Struct):
    id: Id64 | None = None
    name: Name255 | None = None


class NewAccessRule(Struct):
    id: Id64 | None = None
    service: Id64 | None = None
    path: Annotated[str, Meta(min_length=1, max_length=255)] | None = None
    method: Literal["DELETE", "GET", "HEAD", "PATCH", "POST", "PUT"] | None = None


class NewApplicationCredential(Struct):
    name: Name255
    id: str | None = None
    secret: Annotated[str, Meta(max_length=4096)] | None = None
    description: Description | None = None
    expires_at: str | None = None
    project_id: str | None = None
    roles: list[RoleRef] | None = None
    unrestricted: bool | None = None
    access_rules: list[NewAccessRule] | None = None
    system: str | None = None


# -- limits ------------------------------------------------------------------------------------------------------------


class NewRegisteredLimit(Struct, forbid_unknown_fields=True):
    service_id: Id64
    resource_name: Name255
    default_limit: LimitNumber
    region_id: Region | None = None
    description: ShortDescription | None = None


class RegisteredLimitChange(Struct, forbid_unknown_fields=True):
    service_id: Id64 | Maybe = UNSET
    resource_name: Name255 | Maybe = UNSET
    default_limit: LimitNumber | Maybe = UNSET
    region_id: Region | Maybe | None = UNSET
    description: ShortDescription | Maybe | None = UNSET


class NewLimit(Struct, forbid_unknown_fields=True):
    service_id: Id64
    resource_name: Name255
    resource_limit: LimitNumber
    project_id: Id64 | None = None
    domain_id: Id64 | None = None
    region_id: Region | None = None
    description: ShortDescription | None = None


class LimitChange(Struct, forbid_unknown_fields=True):
    resource_limit: LimitNumber | Maybe = UNSET
    description: ShortDescription | Maybe | None = UNSET


class NewPolicy(Struct):
    blob: str
    type: Type255


class PolicyChange(Struct):
    blob: str | Maybe = UNSET
    type: Type255 | Maybe = UNSET


class NewTrust(Struct):
    trustor_user_id: Id64
    trustee_user_id: Id64
    impersonation: bool
    project_id: Id64 | None = None
    expires_at: str | None = None
    remaining_uses: Annotated[int, Meta(ge=1, le=2147483647)] | None = None
    roles: list[RoleRef] = []
    allow_redelegation: bool = False
    redelegation_count: Annotated[int, Meta(ge=0, le=100)] | None = None
    redelegated_trust_id: str | None = None


def extra_of(document: Any, kind: type[Struct]) -> dict[str, Any]:
    """What the client sent beyond the attributes we know."""
    known = {field.encode_name for field in msgspec.structs.fields(kind)} | {"id", "links"}
    return {key: value for key, value in document.items() if key not in known}


def chosen(options: Struct) -> dict[str, Any]:
    """Options that were given a value; null takes one back."""
    return {
        name: value
        for name in options.__struct_fields__
        if (value := getattr(options, name)) is not UNSET and value is not None
    }


def changed_options(old: dict[str, Any], options: Struct | Maybe) -> dict[str, Any]:
    if isinstance(options, UnsetType):
        return old
    found = dict(old)
    for name in options.__struct_fields__:
        value = getattr(options, name)
        if value is None:
            found.pop(name, None)
        elif value is not UNSET:
            found[name] = value
    return found
