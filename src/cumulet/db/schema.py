"""The one MetaData all services' tables register in, and the few column types they use.

Times are BigInteger microseconds since the epoch (`kernel.clock`); ids are text; documents are JSON text encoded
by msgspec. The types behave alike on SQLite and PostgreSQL.
"""

from functools import lru_cache
from typing import Any

import msgspec
from sqlalchemy import BigInteger, Boolean, MetaData, String, TypeDecorator
from sqlalchemy import Text as SqlText

METADATA = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Id = String(64)
Text = SqlText
Time = BigInteger
Bool = Boolean

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class Json(TypeDecorator[Any]):
    """Any JSON value, stored as text. None is SQL NULL."""

    impl = SqlText
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> str | None:
        return None if value is None else _encode(value).decode()

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return None if value is None else _decode(value)

    def result_processor(self, dialect: Any, coltype: Any) -> Any:
        """The same without TypeDecorator's layers: it runs for each value of each row."""
        return lambda value: None if value is None else _decode(value)


class SharedJson(Json):
    """JSON that many rows repeat, such as a server's flavor: each text is decoded once, so nobody may change what is
    read."""

    cache_ok = True

    def result_processor(self, dialect: Any, coltype: Any) -> Any:
        return _decode_shared


@lru_cache(maxsize=4096)
def _decode_shared(value: str | None) -> Any:
    return None if value is None else _decode(value)
