"""The version documents of /compute and /compute/v2.1."""

from typing import Any

from cumulet.http import Call, Route
from cumulet.services.compute.versions import MAXIMUM, MINIMUM

_TYPE = "application/vnd.openstack.compute+json"


def _links(call: Call, path: str) -> list[dict[str, str]]:
    return [{"rel": "self", "href": f"{call.url_root}/{path}/"}]


def _current(call: Call) -> dict[str, Any]:
    return {
        "id": "v2.1",
        "status": "CURRENT",
        "version": MAXIMUM,
        "min_version": MINIMUM,
        "updated": "2013-07-23T11:33:21Z",
        "links": _links(call, "v2.1"),
    }


def _old(call: Call) -> dict[str, Any]:
    """The base version under its old name, without microversions."""
    return {
        "id": "v2.0",
        "status": "SUPPORTED",
        "version": "",
        "min_version": "",
        "updated": "2011-01-21T11:33:21Z",
        "links": _links(call, "v2"),
    }


def index(call: Call) -> dict[str, Any]:
    return {"versions": [_old(call), _current(call)]}


def show(call: Call) -> dict[str, Any]:
    old = call.url_base.endswith("/v2")
    found = _old(call) if old else _current(call)
    found["links"] = [
        *found["links"],
        {"rel": "describedby", "type": "text/html", "href": "http://docs.openstack.org/"},
    ]
    found["media-types"] = [{"base": "application/json", "type": f"{_TYPE};version={'2' if old else '2.1'}"}]
    return {"version": found}


ROOT_ROUTES = [
    Route(method="GET", path="", handler=index, auth=False, summary="API versions"),
]
ROUTES = [
    Route(method="GET", path="", handler=show, auth=False, summary="The API's version document"),
    Route(method="GET", path="/", handler=show, auth=False),
]
