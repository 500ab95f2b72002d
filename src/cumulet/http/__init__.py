"""The ASGI layer all services share."""

from cumulet.http.app import HttpApp
from cumulet.http.call import Call, Query, Reply, Version
from cumulet.http.faults import (
    CinderFaults,
    FaultRequest,
    Faults,
    GlanceFaults,
    KeystoneFaults,
    NeutronFaults,
    NovaFaults,
    PlacementFaults,
)
from cumulet.http.microversion import Microversions, Since, Until, format_version, parse_version
from cumulet.http.paging import MAX_LIMIT, Page, next_href, next_links, ordered, page_of, paged_in_memory, whole_number
from cumulet.http.policy import PolicyEngine, PolicyError, PolicyOverrides
from cumulet.http.route import Route
from cumulet.http.service import ServiceApi

__all__ = [
    "MAX_LIMIT",
    "Call",
    "CinderFaults",
    "FaultRequest",
    "Faults",
    "GlanceFaults",
    "HttpApp",
    "KeystoneFaults",
    "Microversions",
    "NeutronFaults",
    "NovaFaults",
    "Page",
    "PlacementFaults",
    "PolicyEngine",
    "PolicyError",
    "PolicyOverrides",
    "Query",
    "Reply",
    "Route",
    "ServiceApi",
    "Since",
    "Until",
    "Version",
    "format_version",
    "next_href",
    "next_links",
    "ordered",
    "page_of",
    "paged_in_memory",
    "parse_version",
    "whole_number",
]
