"""What every answer owes its service: the shape of faults, the request id, the content type."""

import json
from collections.abc import Callable
from typing import Any

from tests.fuzz.asgi import Sent

JSON = "application/json"


def complaints(service: str, sent: Sent) -> list[str]:
    """What is wrong with this answer; empty when nothing is."""
    found: list[str] = []
    if sent.status >= 500 and sent.status != 501:
        found.append(f"a {sent.status}")
    if not 200 <= sent.status < 600:
        found.append(f"no HTTP status: {sent.status}")
    if not sent.request_id and not (service == "image" and sent.status == 401):
        found.append("no x-openstack-request-id")
    if sent.method == "HEAD" or sent.status in (204, 304):
        if sent.answer:
            found.append("a body where there is none")
        return found
    if sent.answer and not sent.content_type:
        found.append("a body without a content type")
    document: Any = None
    if sent.content_type.split(";")[0] == JSON:
        try:
            document = json.loads(sent.answer)
        except ValueError:
            found.append("the body is not JSON")
            return found
    if sent.status >= 400:
        problem = FAULTS[service](sent, document)
        if problem:
            found.append(problem)
    return found


def _code_and_message(inner: Any, status: int) -> str | None:
    if not isinstance(inner, dict) or inner.get("code") != status:
        return "the fault's code is not the status"
    if not isinstance(inner.get("message"), str) or not inner["message"]:
        return "the fault has no message"
    return None


def _nova(sent: Sent, document: Any) -> str | None:
    if not isinstance(document, dict):
        return "the fault is not a JSON object"
    if sent.status == 404 and document.keys() == {"message", "code", "title"}:
        return None  # the router's own
    if len(document) != 1:
        return "the fault has more than one key"
    return _code_and_message(next(iter(document.values())), sent.status)


def _keystone(sent: Sent, document: Any) -> str | None:
    if sent.status == 404 and sent.content_type.startswith("text/html"):
        return None  # flask's page for what is not routed
    if not isinstance(document, dict):
        return "the fault is not a JSON object"
    if sent.status == 405 and document.keys() == {"message"}:
        return None
    error = document.get("error")
    return _code_and_message(error, sent.status) or (None if error.get("title") else "the fault has no title")


def _neutron(sent: Sent, document: Any) -> str | None:
    if sent.status == 401:
        return _keystone(sent, document)  # the token middleware's
    error = document.get("NeutronError") if isinstance(document, dict) else None
    if not isinstance(error, dict) or error.keys() != {"type", "message", "detail"}:
        return "no NeutronError of type, message and detail"
    if not error["type"] or not isinstance(error["message"], str):
        return "the NeutronError lacks its type or message"
    return None


def _glance(sent: Sent, document: Any) -> str | None:
    if not isinstance(document, dict) or document.keys() != {"message", "code", "title"}:
        return "the fault is not message, code and title"
    return None if document["code"].startswith(f"{sent.status} ") else "the fault's code is not the status"


def _placement(sent: Sent, document: Any) -> str | None:
    if sent.status == 401:
        return _keystone(sent, document)
    errors = document.get("errors") if isinstance(document, dict) else None
    if not isinstance(errors, list) or not errors:
        return "no list of errors"
    first = errors[0]
    if first.get("status") != sent.status or first.get("request_id") != sent.request_id or not first.get("detail"):
        return "the error lacks its status, detail or request id"
    return None


FAULTS: dict[str, Callable[[Sent, Any], str | None]] = {
    "compute": _nova,
    "volume": _nova,
    "operator": _nova,
    "identity": _keystone,
    "network": _neutron,
    "image": _glance,
    "placement": _placement,
}
