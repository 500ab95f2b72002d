"""Routes on hosts, part of the operator API. Joining needs no login: its token is one."""

from typing import Any

from cumulet.http import Call, Reply, Route
from cumulet.services.hosts.public import HostsService
from cumulet.services.hosts.schema import Down, Drain, JoinRequest, NewToken

RULES: dict[str, str] = {"operator:hosts": "role:admin"}
_RULE = "operator:hosts"


def _service(call: Call) -> HostsService:
    service: HostsService = call.service.machines
    return service


def list_hosts(call: Call) -> Any:
    return {"hosts": _service(call).listing()}


def show_host(call: Call) -> Any:
    return {"host": _service(call).show(call.params["host"])}


def drain_host(call: Call) -> Any:
    body: Drain = call.body
    service = _service(call)
    return {
        "host": service.drain(call.params["host"], body.reason) if body.drain else service.undrain(call.params["host"])
    }


def down_host(call: Call) -> Any:
    return {"host": _service(call).set_down(call.params["host"], down=call.body.down)}


def remove_host(call: Call) -> None:
    _service(call).remove(call.params["host"])


def create_token(call: Call) -> Any:
    return {"token": _service(call).joining.create_token(call.body, call.ctx.user_id)}


def list_tokens(call: Call) -> Any:
    return {"tokens": _service(call).joining.tokens()}


def delete_token(call: Call) -> None:
    _service(call).joining.delete_token(call.params["token_id"])


def show_authority(call: Call) -> Reply:
    """Public: whoever joins compares it with the fingerprint in the token."""
    return Reply(_service(call).joining.authority()[0].encode(), media_type="application/x-pem-file")


def join(call: Call) -> Any:
    return _service(call).joining.join(call.body)


ROUTES = [
    Route(method="GET", path="/hosts", handler=list_hosts, policy=_RULE, summary="Hosts and what they hold"),
    Route(method="GET", path="/hosts/{host}", handler=show_host, policy=_RULE, summary="A host and what is left on it"),
    Route(
        method="POST", path="/hosts/{host}/drain", handler=drain_host, body=Drain, policy=_RULE,
        summary="Take a host out of use, or back",
    ),
    Route(
        method="POST", path="/hosts/{host}/down", handler=down_host, body=Down, policy=_RULE,
        summary="Vouch that a host is dead, or not any more",
    ),
    Route(
        method="DELETE", path="/hosts/{host}", handler=remove_host, policy=_RULE, success=204, slow=True,
        summary="Forget a host that holds nothing",
    ),
    Route(
        method="POST", path="/host-tokens", handler=create_token, body=NewToken, policy=_RULE, success=201,
        summary="A one-time token for a machine that is to join",
    ),
    Route(method="GET", path="/host-tokens", handler=list_tokens, policy=_RULE, summary="Tokens, without secrets"),
    Route(
        method="DELETE", path="/host-tokens/{token_id}", handler=delete_token, policy=_RULE, success=204,
        summary="Take a token back",
    ),
    Route(method="GET", path="/join", handler=show_authority, auth=False, summary="The certificate of the authority"),
    Route(
        method="POST", path="/join", handler=join, body=JoinRequest, auth=False, slow=True, max_body_bytes=20_000,
        summary="Become a host, with a token",
    ),
]  # fmt: skip
