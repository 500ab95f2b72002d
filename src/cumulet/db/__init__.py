"""The database: one engine for SQLite and PostgreSQL, units of work, column types, migrations."""

from cumulet.db.database import Database, Tx, to_change, to_refer
from cumulet.db.schema import METADATA, Bool, Id, Json, SharedJson, Text, Time

__all__ = ["METADATA", "Bool", "Database", "Id", "Json", "SharedJson", "Text", "Time", "Tx", "to_change", "to_refer"]
