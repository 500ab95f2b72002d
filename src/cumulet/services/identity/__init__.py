"""Identity: tokens, users, projects, roles, the catalog (Keystone v3)."""
