"""SQL of host tokens, the authority and certificates."""

import msgspec
from sqlalchemy import bindparam, delete, select, update

from cumulet.db import Tx, to_change
from cumulet.services.hosts.tables import HOST_AUTHORITY, HOST_CERTIFICATES, HOST_TOKENS


class TokenRow(msgspec.Struct):
    id: str
    secret_hash: str
    host: str | None
    roles: list[str] | None
    created_by: str | None
    created_at: int
    expires_at: int
    used_at: int | None
    used_by: str | None
    used_key: str | None


class CertificateRow(msgspec.Struct):
    serial: str
    host: str
    fingerprint: str
    key_hash: str
    issued_at: int
    expires_at: int
    revoked_at: int | None


_T, _C = HOST_TOKENS, HOST_CERTIFICATES
_TOKENS = select(*[_T.c[name] for name in TokenRow.__struct_fields__])
_TOKENS_BY_AGE = _TOKENS.order_by(_T.c.created_at.desc())
_TOKEN_TO_USE = to_change(_TOKENS.where(_T.c.id == bindparam("the_id")))
_USE = (
    update(_T)
    .where(_T.c.id == bindparam("the_id"))
    .values(used_at=bindparam("now"), used_by=bindparam("by"), used_key=bindparam("by_key"))
)
_DELETE_TOKEN = delete(_T).where(_T.c.id == bindparam("the_id"))
_PRUNE = delete(_T).where(_T.c.expires_at < bindparam("before"))
_AUTHORITY = select(HOST_AUTHORITY.c.certificate, HOST_AUTHORITY.c.key).where(HOST_AUTHORITY.c.id == 1)
_VALID = select(*[_C.c[name] for name in CertificateRow.__struct_fields__]).where(_C.c.revoked_at.is_(None))
_VALID_OF = _VALID.where(_C.c.host == bindparam("the_host"))
_EVER = select(_C.c.serial).where(_C.c.host == bindparam("the_host")).limit(1)
_REVOKE = (
    update(_C)
    .where(_C.c.host == bindparam("the_host"), _C.c.fingerprint != bindparam("but"), _C.c.revoked_at.is_(None))
    .values(revoked_at=bindparam("now"))
)


def tokens(tx: Tx) -> list[TokenRow]:
    return [TokenRow(*row) for row in tx.rows(_TOKENS_BY_AGE)]


def token(tx: Tx, token_id: str) -> TokenRow | None:
    """To be used: nobody else uses it until the end of the unit of work."""
    row = tx.first(_TOKEN_TO_USE, {"the_id": token_id})
    return None if row is None else TokenRow(*row)


def add_token(tx: Tx, row: TokenRow) -> None:
    tx.insert(HOST_TOKENS, msgspec.structs.asdict(row))


def use_token(tx: Tx, token_id: str, host: str, key: str) -> None:
    tx.run(_USE, {"the_id": token_id, "now": tx.now, "by": host, "by_key": key})


def delete_token(tx: Tx, token_id: str) -> bool:
    return bool(tx.run(_DELETE_TOKEN, {"the_id": token_id}))


def prune_tokens(tx: Tx, before: int) -> int:
    return tx.run(_PRUNE, {"before": before})


def authority(tx: Tx) -> tuple[str, str] | None:
    row = tx.first(_AUTHORITY)
    return None if row is None else (row[0], row[1])


def add_authority(tx: Tx, certificate: str, key: str) -> None:
    tx.insert(HOST_AUTHORITY, {"id": 1, "certificate": certificate, "key": key, "created_at": tx.now})


def valid(tx: Tx) -> list[CertificateRow]:
    """Every certificate that was not revoked."""
    return [CertificateRow(*row) for row in tx.rows(_VALID)]


def valid_of(tx: Tx, host: str) -> list[CertificateRow]:
    return [CertificateRow(*row) for row in tx.rows(_VALID_OF, {"the_host": host})]


def ever_certified(tx: Tx, host: str) -> bool:
    return tx.first(_EVER, {"the_host": host}) is not None


def add_certificate(tx: Tx, row: CertificateRow) -> None:
    tx.insert(HOST_CERTIFICATES, msgspec.structs.asdict(row))


def revoke(tx: Tx, host: str, *, but: str = "") -> int:
    """All that a host holds; ``but``: not the one with this fingerprint."""
    return tx.run(_REVOKE, {"the_host": host, "but": but, "now": tx.now})
