"""Version documents and JSON Home."""

import re
from typing import Any

from cumulet.http import Call, Reply, Route

_MEDIA = [{"base": "application/json", "type": "application/vnd.openstack.identity-v3+json"}]
_REL = "https://docs.openstack.org/api/openstack-identity/3/rel/"
_PARAM = "https://docs.openstack.org/api/openstack-identity/3/param/"
_PARAMETER = re.compile(r"\{(\w+)\}")


def _version(call: Call) -> dict[str, Any]:
    return {
        "id": "v3.14",
        "status": "stable",
        "updated": "2020-04-07T00:00:00Z",
        "links": [{"rel": "self", "href": f"{call.url_root}/v3/"}],
        "media-types": _MEDIA,
    }


def versions(call: Call) -> Reply:
    if "application/json-home" in call.headers.get("accept", ""):
        return Reply(_home(call), media_type="application/json-home")
    document = {"versions": {"values": [_version(call)]}}
    return Reply(document, status=300, headers={"location": f"{call.url_root}/v3/"})


def version(call: Call) -> Reply:
    if "application/json-home" in call.headers.get("accept", ""):
        return Reply(_home(call), media_type="application/json-home")
    return Reply({"version": _version(call)})


def _home(call: Call) -> dict[str, Any]:
    """Every path that answers GET or takes POST, by the relation its last words make."""
    resources: dict[str, Any] = {}
    for route in call.api.routes:
        if route.path.startswith("/OS-") or route.method not in ("GET", "POST"):
            continue
        words = [word for word in route.path.split("/") if word]
        literal = [word for word in words if not word.startswith("{")]
        if not literal:
            continue
        names = _PARAMETER.findall(route.path)
        relation = _relation(words)
        entry: dict[str, Any] = {"href": "/v3" + route.path}
        if names:
            entry = {
                "href-template": "/v3" + route.path,
                "href-vars": {name: f"{_PARAM}{name}" for name in names},
            }
        resources.setdefault(_REL + relation, entry)
    return {"resources": resources}


def _relation(words: list[str]) -> str:
    parts = [
        _singular(word) if i + 1 < len(words) and words[i + 1].startswith("{") else word
        for i, word in enumerate(words)
        if not word.startswith("{")
    ]
    return "_".join(parts)


def _singular(word: str) -> str:
    return word[:-1] if word.endswith("s") else word


ROOT_ROUTES = [
    Route(method="GET", path="/", handler=versions, auth=False, success=300),
    Route(method="GET", path="/v3", handler=version, auth=False),
]
