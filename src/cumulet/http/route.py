"""What a service declares: one table of routes. The dispatcher, OpenAPI and coverage tests are made from it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import msgspec


@dataclass(frozen=True, kw_only=True)
class Route:
    """One operation of an API.

    ``path`` is relative to the service's version prefix, with ``{name}`` segments. ``action`` is the single key of the
    body of a ``POST …/action``. ``body`` is the struct of the *newest* version; ``body_key`` the wrapping key, if any.
    ``policy`` is checked before the handler with the caller's own project as target; None: the handler authorises
    against the object it loaded (``call.authorize``). ``stream`` bodies are handed over unread.
    ``body`` may be any type msgspec decodes. A field annotated ``Annotated[T, Since("2.90")]`` (`http.microversion`)
    is unknown to older requests, ``Until("2.56")`` to newer ones. Several routes may share method, path and action
    when their version ranges do not overlap.
    The handler runs on a worker thread: it takes a `http.call.Call` and returns a struct, a dict, None (no body) or a
    `http.call.Reply` when it needs another status or headers.
    """

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"]
    path: str
    handler: Callable[..., Any]
    policy: str | None = None
    action: str | None = None
    body: Any = None  # a msgspec Struct, usually
    body_key: str | None = None
    query: type[msgspec.Struct] | None = None
    success: int = 200
    min_version: str | None = None
    max_version: str | None = None
    auth: bool = True
    stream: Literal["no", "request", "response"] = "no"
    max_body_bytes: int = 1_000_000
    summary: str = ""
    response: Any = None  # type of the answer, for OpenAPI
    strict: bool = True  # False: "12" is taken for 12 and "true" for true in the body, as lenient upstream schemas do
    media_types: tuple[str, ...] = ("application/json",)  # others are 415; with one that is not JSON, use ``raw``
    body_required: bool = True  # False: an absent body is ``None`` (struct routes only)
    statuses: tuple[int, ...] = ()  # other success statuses, for OpenAPI and coverage
    # What even a good request is answered, when this cloud has nothing the operation could act on (a feature that is
    # switched off upstream by default, or not offered here): such an operation is done when tests saw this refusal.
    refusal: int | None = None
    slow: bool = False  # hashes, or asks a host: runs on threads of its own, so that it never starves quick requests
