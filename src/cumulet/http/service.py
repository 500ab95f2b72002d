"""What a service hands to the HTTP layer: its routes and everything that is particular about its conventions."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cumulet.http.faults import Faults
from cumulet.http.microversion import Microversions
from cumulet.http.policy import CheckFactory, PolicyEngine
from cumulet.http.route import Route


@dataclass(kw_only=True)
class ServiceApi:
    """``prefix``: where the service is mounted (``/compute``). ``version_prefix``: what every path in ``routes``
    follows (``/v2.1``; may be empty); ``version_aliases`` answer alike. ``root_routes`` are relative to ``prefix``
    itself (version documents, mostly with ``auth=False``).

    ``project_in_path``: ``/v2.1/{project_id}/…`` is served beside ``/v2.1/…``; a project that is not the token's is
    a 400. Links of such requests carry the project id (``call.url_base``).
    """

    name: str
    prefix: str
    service: Any
    routes: Sequence[Route]
    faults: Faults
    rules: Mapping[str, str] = field(default_factory=dict)
    service_types: tuple[str, ...] = ()  # in the catalog, for access rules; by default the name
    version_prefix: str = ""
    version_aliases: tuple[str, ...] = ()
    root_routes: Sequence[Route] = ()
    project_in_path: bool = False
    project_pattern: str = r"[0-9a-f\-]+"
    microversions: Microversions | None = None
    request_id_headers: tuple[str, ...] = ("x-openstack-request-id",)
    extra_headers: tuple[tuple[str, str], ...] = ()  # on every answer, e.g. keystone's Vary
    head_as_get: bool = False
    strip_trailing_slash: bool = False
    strip_json_suffix: bool = False
    policy_factories: Mapping[str, CheckFactory] = field(default_factory=dict)
    policy_first: bool = True  # False: bodies are validated before `Route.policy` is checked (nova)
    title: str = ""
    engine: PolicyEngine = field(init=False)

    def __post_init__(self) -> None:
        if not self.service_types:
            self.service_types = (self.name, *(self.microversions.names if self.microversions else ()))
        self.engine = PolicyEngine(self.rules, factories=self.policy_factories)
        self.project_regex = re.compile(self.project_pattern + r"\Z")
        unknown = {r.policy for r in (*self.routes, *self.root_routes) if r.policy and r.policy not in self.engine}
        if unknown:
            raise ValueError(f"{self.name}: routes name unknown policy rules: {sorted(unknown)}")

    def load_policy(self, overrides: Mapping[str, str]) -> None:
        self.engine.load(overrides)
