"""Tables of the identity service. A domain is a project with ``is_domain``, as in keystone."""

from sqlalchemy import Column, ForeignKey, Index, Integer, Table, UniqueConstraint

from cumulet.db import METADATA, Bool, Id, Json, Text, Time

KEYS = Table(
    "identity_keys",
    METADATA,
    Column("id", Id, primary_key=True),
    Column("kind", Id, nullable=False),  # token | credential
    Column("secret", Text, nullable=False),
    Column("created_at", Time, nullable=False),
)

# A number that grows with each change that may matter to a token already issued. Keys: user:ID, project:ID, all.
EPOCHS = Table(
    "identity_epochs",
    METADATA,
    Column("key", Id, primary_key=True),
    Column("value", Time, nullable=False),
)

REVOCATIONS = Table(
    "identity_revocations",
    METADATA,
    Column("audit_id", Id, primary_key=True),
    Column("expires_at", Time, nullable=False, index=True),
)

PROJECTS = Table(
    "identity_projects",
    METADATA,
    Column("id", Id, primary_key=True),
    Column("name", Text, nullable=False),
    Column("domain_id", Id, nullable=True),  # None for a domain
    Column("parent_id", Id, nullable=True),  # None for a domain
    Column("is_domain", Bool, nullable=False),
    Column("description", Text, nullable=True),
    Column("enabled", Bool, nullable=False),
    Column("tags", Json, nullable=False),
    Column("options", Json, nullable=False),
    Column("extra", Json, nullable=False),
    UniqueConstraint("domain_id", "name"),
    Index("ix_identity_projects_parent", "parent_id"),
)

USERS = Table(
    "identity_users",
    METADATA,
    Column("id", Id, primary_key=True),
    Column("domain_id", Id, ForeignKey("identity_projects.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("enabled", Bool, nullable=False),
    Column("default_project_id", Id, nullable=True),
    Column("password_hash", Text, nullable=True),
    Column("password_expires_at", Time, nullable=True),
    Column("tokens_after", Time, nullable=False),  # tokens issued up to then are revoked
    Column("options", Json, nullable=False),
    Column("extra", Json, nullable=False),
    UniqueConstraint("domain_id", "name"),
)

GROUPS = Table(
    "identity_groups",
    METADATA,
    Column("id", Id, primary_key=True),
    Column("domain_id", Id, ForeignKey("identity_projects.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("description", Text, nullable=True),
    Column("extra", Json, nullable=False),
    UniqueConstraint("domain_id", "name"),
)

MEMBERS = Table(
    "identity_group_members",
    METADATA,
    Column("group_id", Id, ForeignKey("identity_groups.id"), primary_key=True),
    Column("user_id", Id, ForeignKey("identity_users.id"), primary_key=True, index=True),
)

ROLES = Table(
    "identity_roles",
    METADATA,
    Column("id", Id, primary_key=True),
    Column("name", Text, nullable=False),
    Column("domain_id", Id, nullable=True),
    Column("description", Text, nullable=True),
    Column("options", Json, nullable=False),
    Column("extra", Json, nullable=False),
    UniqueConstraint("domain_id", "name"),
)

IMPLIED_ROLES = Table(
    "identity_implied_roles",
    METADATA,
    Column("prior_role_id", Id, ForeignKey("identity_roles.id"), primary_key=True),
    Column("implied_role_id", Id, ForeignKey("identity_roles.id"), primary_key=True),
)

ASSIGNMENTS = Table(
    "identity_assignments",
    METADATA,
    Column("actor_kind", Id, primary_key=True),  # user | group
    Column("actor_id", Id, primary_key=True),
    Column("target_kind", Id, primary_key=True),  # project | domain | system
    Column("target_id", Id, primary_key=True),  # "system" for the system
    Column("role_id", Id, ForeignKey("identity_roles.id"), primary_key=True),
    Column("inherited", Bool, primary_key=True),
    Index("ix_identity_assignments_target", "target_kind", "target_id"),
    Index("ix_identity_assignments_role", "role_id"),
)

SERVICES = Table(
    "identity_services",
    METADATA,
    Column("id", Id, primary_key=True),
    Column("type", Text, nullable=False),
    Column("enabled", Bool, nullable=False),
    Column("extra", Json, nullable=False),  # name and description among others
)

REGIONS = Table(
    "identity_regions",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("parent_region_id", Text, nullable=True),
    Column("description", Text, nullable=False),
    Column("extra", Json, nullable=False),
)

ENDPOINTS = Table(
    "identity_endpoints",
    METADATA,
    Column("id", Id, primary_key=True),
    Column("service_id", Id, ForeignKey("identity_services.id"), nullable=False),
    Column("region_id", Text, ForeignKey("identity_regions.id"), nullable=True),
    Column("interface", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("enabled", Bool, nullable=False),
    Column("extra", Json, nullable=False),
)

CREDENTIALS = Table(
    "identity_credentials",
    METADATA,
    Column("id", Id, primary_key=True),
    Column("user_id", Id, nullable=False, index=True),
    Column("project_id", Id, nullable=True),
    Column("type", Text, nullable=False),
    Column("blob", Text, nullable=False),  # encrypted with the credential keys
    Column("extra", Json, nullable=False),
)

APPLICATION_CREDENTIALS = Table(
    "identity_application_credentials",
    METADATA,
    Column("id", Id, primary_key=True),
    Column("user_id", Id, ForeignKey("identity_users.id"), nullable=False),
    Column("project_id", Id, nullable=False, index=True),
    Column("name", Text, nullable=False),
    Column("secret_hash", Text, nullable=False),
    Column("description", Text, nullable=True),
    Column("expires_at", Time, nullable=True),
    Column("unrestricted", Bool, nullable=False),
    Column("roles", Json, nullable=False),  # role ids
    Column("access_rules", Json, nullable=True),  # ids; None: not restricted to any
    UniqueConstraint("user_id", "name"),
)

ACCESS_RULES = Table(
    "identity_access_rules",
    METADATA,
    Column("id", Id, primary_key=True),
    Column("user_id", Id, nullable=False, index=True),
    Column("service", Text, nullable=True),
    Column("path", Text, nullable=True),
    Column("method", Text, nullable=True),
)

REGISTERED_LIMITS = Table(
    "identity_registered_limits",
    METADATA,
    Column("id", Id, primary_key=True),
    Column("service_id", Id, nullable=False),
    Column("region_id", Text, nullable=True),
    Column("resource_name", Text, nullable=False),
    Column("default_limit", Integer, nullable=False),
    Column("description", Text, nullable=True),
)

LIMITS = Table(
    "identity_limits",
    METADATA,
    Column("id", Id, primary_key=True),
    Column("project_id", Id, nullable=True, index=True),
    Column("domain_id", Id, nullable=True),
    Column("service_id", Id, nullable=False),
    Column("region_id", Text, nullable=True),
    Column("resource_name", Text, nullable=False),
    Column("resource_limit", Integer, nullable=False),
    Column("description", Text, nullable=True),
)

TRUSTS = Table(
    "identity_trusts",
    METADATA,
    Column("id", Id, primary_key=True),
    Column("trustor_user_id", Id, nullable=False, index=True),
    Column("trustee_user_id", Id, nullable=False, index=True),
    Column("project_id", Id, nullable=True),
    Column("impersonation", Bool, nullable=False),
    Column("expires_at", Time, nullable=True),
    Column("remaining_uses", Integer, nullable=True),
    Column("allow_redelegation", Bool, nullable=False),
    Column("redelegation_count", Integer, nullable=False),
    Column("redelegated_trust_id", Id, nullable=True),
    Column("roles", Json, nullable=False),
    Column("deleted_at", Time, nullable=True),
)

POLICIES = Table(
    "identity_policies",
    METADATA,
    Column("id", Id, primary_key=True),
    Column("type", Text, nullable=False),
    Column("blob", Json, nullable=False),
    Column("extra", Json, nullable=False),
)
