"""Which messages exist: struct type name -> type, and how long an answer may take.

Only types listed here travel. Bodies are JSON by msgspec; unknown fields are ignored, so that neighbours of different
releases understand each other.
"""

from typing import Any

import msgspec

from cumulet.agent import contract


class Fault(msgspec.Struct, frozen=True):
    """Answer of a handler that raised."""

    kind: str
    message: str


class Nothing(msgspec.Struct, frozen=True):
    """Answer of a handler that has none."""


TYPES: dict[str, type[Any]] = {}
_DECODERS: dict[str, msgspec.json.Decoder[Any]] = {}
_TIMEOUTS: dict[str, float] = {}
_encode = msgspec.json.Encoder().encode
DEFAULT_TIMEOUT = 5.0


def register(kind: type[Any], *, timeout: float = DEFAULT_TIMEOUT) -> None:
    """Let a struct travel. ``timeout``: seconds within which a call with it must be answered."""
    name = kind.__name__
    if TYPES.get(name, kind) is not kind:
        raise ValueError(f"two message types are called {name}")
    TYPES[name] = kind
    _DECODERS[name] = msgspec.json.Decoder(kind)
    _TIMEOUTS[name] = timeout


def encode(message: msgspec.Struct) -> tuple[str, bytes]:
    name = type(message).__name__
    if TYPES.get(name) is not type(message):
        raise TypeError(f"{type(message)!r} is not in the catalogue")
    return name, _encode(message)


def decode(name: str, body: bytes | memoryview | str) -> Any:
    """Raises msgspec.DecodeError or KeyError for what this release does not know."""
    return _DECODERS[name].decode(body)


def timeout_of(message: msgspec.Struct, given: float | None) -> float:
    return _TIMEOUTS[type(message).__name__] if given is None else given


_QUICK: tuple[type[Any], ...] = (
    contract.Execute,
    contract.Accepted,
    contract.Refused,
    contract.Outcome,
    contract.AskOutcome,
    contract.LookAgain,
    contract.Index,
    contract.Documents,
    contract.Applied,
    contract.Heartbeat,
    contract.ServerReport,
    contract.PasswordPosted,
    contract.PasswordTaken,
    contract.RenewCertificate,
    contract.Certified,
    contract.Absent,
    contract.Answer,
    Fault,
    Nothing,
)
for _kind in _QUICK:
    register(_kind)
# these make the other side look into its database or its hypervisor
_SLOW: tuple[type[Any], ...] = (contract.PullIndex, contract.Pull, contract.Inventory)
for _kind in _SLOW:
    register(_kind, timeout=15)
register(contract.Ask, timeout=10)

# Their handlers only write down or look up, so within one process they run on the thread of the caller, which waits for
# the answer anyway: handing such a call to another thread and back costs more than handling it.
PROMPT: frozenset[type[Any]] = frozenset(
    (
        *(contract.Execute, contract.Outcome, contract.ServerReport, contract.Applied, contract.Heartbeat),
        *(contract.PullIndex, contract.Pull, contract.Inventory),
    )
)
