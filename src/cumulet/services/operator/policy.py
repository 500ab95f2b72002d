"""Rules of the operator API; a project's own people may ask about their own servers."""

RULES: dict[str, str] = {
    "operator:status": "role:admin",
    "operator:top": "role:admin",
    "operator:conditions": "role:admin",
    "operator:audit": "role:admin",
    "operator:audit:fix": "role:admin",
    "operator:requests": "role:admin",
    "operator:process": "role:admin",
    "operator:explain": "role:admin or (role:reader and project_id:%(project_id)s)",
    "operator:explain:hosts": "role:admin",  # host names and the domain XML
}
