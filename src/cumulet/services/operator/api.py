"""Routes of the operator API (``/operator/v1``): ours, not OpenStack's; in the catalog as type ``operator``."""

from typing import Any

import msgspec

from cumulet.http import Call, Route, ServiceApi
from cumulet.http.faults import NovaFaults
from cumulet.kernel.errors import BadInput
from cumulet.services.hosts import api as hosts
from cumulet.services.operator.policy import RULES
from cumulet.services.operator.public import OperatorService


def show_status(call: Call) -> Any:
    return call.service.status()


def show_process(call: Call) -> Any:
    return call.service.process(memory=call.query.get("memory", "1") not in ("0", "false"))


def explain_server(call: Call) -> Any:
    service: OperatorService = call.service
    row = service.server(call.params["server_id"])
    target = {"project_id": row.project_id, "user_id": row.user_id}
    call.authorize("operator:explain", target)
    hosts = call.allowed("operator:explain:hosts", target)
    return service.explain_server(row, hosts=hosts, xml=call.query.get("xml", "1") not in ("0", "false"))


def show_top(call: Call) -> Any:
    return call.service.top()


def list_conditions(call: Call) -> Any:
    return {"conditions": call.service.conditions(resolved=call.query.get("all") in ("1", "true"))}


class AuditBody(msgspec.Struct, forbid_unknown_fields=True):
    """``fix``: repair what can be repaired; ``only``: of these findings (ids) or of these kinds (codes)."""

    fix: bool = False
    only: list[str] | None = None


def list_checks(call: Call) -> Any:
    return {"checks": call.service.describe_checks()}


def run_audit(call: Call) -> Any:
    body: AuditBody = call.body
    if body.fix:
        call.authorize("operator:audit:fix")
    return call.service.audit(fix=body.fix, only=body.only)


def list_requests(call: Call) -> Any:
    return {"requests": call.service.requests(whole_number(call.query.get("limit"), "limit", 20, 1, 1000))}


def explain_request(call: Call) -> Any:
    return call.service.explain_request(call.params["request_id"])


def whole_number(text: str | None, name: str, default: int, low: int, high: int) -> int:
    if text is None:
        return default
    if not text.isascii() or not text.isdecimal() or len(text) > 9 or not low <= int(text) <= high:
        raise BadInput(f"{name} is a whole number from {low} to {high}.")
    return int(text)


ROUTES = [
    Route(method="GET", path="/status", handler=show_status, policy="operator:status", summary="State of the cloud"),
    Route(
        method="GET",
        path="/process",
        handler=show_process,
        policy="operator:process",
        summary="What this process spends",
    ),
    Route(method="GET", path="/explain/servers/{server_id}", handler=explain_server, summary="Story of a server"),
    Route(method="GET", path="/top", handler=show_top, policy="operator:top", slow=True, summary="State of the moment"),
    Route(
        method="GET",
        path="/conditions",
        handler=list_conditions,
        policy="operator:conditions",
        summary="What degrades the cloud; all=1: and what did",
    ),
    Route(method="GET", path="/checks", handler=list_checks, policy="operator:audit", summary="What an audit looks at"),
    Route(
        method="POST",
        path="/audit",
        handler=run_audit,
        policy="operator:audit",
        body=AuditBody,
        body_key="audit",
        slow=True,
        summary="Run every check now; repair on request",
    ),
    Route(
        method="GET",
        path="/requests",
        handler=list_requests,
        policy="operator:requests",
        summary="The last requests that changed something or failed",
    ),
    Route(
        method="GET",
        path="/explain/requests/{request_id}",
        handler=explain_request,
        policy="operator:requests",
        summary="The course of a request through the cloud's processes",
    ),
]


def build_api(service: OperatorService) -> ServiceApi:
    return ServiceApi(
        name="operator",
        prefix="/operator",
        version_prefix="/v1",
        service=service,
        routes=[*ROUTES, *hosts.ROUTES],
        faults=NovaFaults(),
        rules=RULES | hosts.RULES,
        title="Cumulet operator",
    )
