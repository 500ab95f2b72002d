"""The version documents of /compute and /compute/v2.1."""

from typing import Any

from cumulet.http import Call, Route
from cumulet.services.compute.versions import MAXIMUM, MINIMUM

_TYPE = "application/vnd.openstack.compute+json"


def _links(call: Call) -> list[dict[str, str]]:
    return [{"rel": "self", "href": f"{call.url_root}/v2.1/"}]


def _current(call: Call) -> dict[str, Any]:
    return {
        "id": "v2.1",
        "status": "CURRENT",
        "version": MAXIMUM,
        "min_version": MINIMUM,
        "updated": "2013-07-23T11:33:21Z",
        "links": _links(call),
    }


def index(call: Call) -> dict[str, Any]:
    return {"versions": [_current(call)]}


def show(call: Call) -> dict[str, Any]:
    links = [
        *_links(call),
        {"rel": "describedby", "type": "text/html", "href": "http://docs.openstack.org/"},
    ]
    media = [{"base": "application/json", "type": f"{_TYPE};version=2.1"}]
    return {"version": {**_current(call), "links": links, "media-types": media}}


ROOT_ROUTES = [
    Route(method="GET", path="", handler=index, auth=False, summary="API versions"),
]
ROUTES = [
    Route(method="GET", path="", handler=show, auth=False, summary="The API's version document"),
    Route(method="GET", path="/", handler=show, auth=False),
]
