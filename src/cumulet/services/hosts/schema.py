"""Bodies of the calls on hosts."""

from typing import Annotated

import msgspec

Name = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]*\Z", max_length=63)]
Roles = Annotated[list[str], msgspec.Meta(min_length=1, max_length=3)]
_Short = Annotated[str, msgspec.Meta(max_length=64)]


class NewToken(msgspec.Struct, forbid_unknown_fields=True):
    """``host``: the only name it is good for, even where another machine has it now."""

    host: Name | None = None
    roles: Roles | None = None
    hours: Annotated[float, msgspec.Meta(gt=0, le=24 * 30)] = 1.0


class JoinRequest(msgspec.Struct, forbid_unknown_fields=True):
    token_id: _Short
    secret: Annotated[str, msgspec.Meta(max_length=128)]
    host: Name
    roles: Roles
    ip: _Short
    csr: Annotated[str, msgspec.Meta(max_length=8192)]
    tunnel_ip: _Short | None = None


class Drain(msgspec.Struct, forbid_unknown_fields=True):
    drain: bool = True  # False: the host takes work again
    reason: Annotated[str, msgspec.Meta(max_length=255)] | None = None


class Down(msgspec.Struct, forbid_unknown_fields=True):
    down: bool = True
