"""Statements compiled once and given straight to the driver.

SQLAlchemy builds and compiles every statement; executing one through it costs several times what the driver needs
(measured: 30-60 µs a statement, a third of what a server create costs). A statement that is executed again, as those
that stand at module level are, is therefore kept here in its compiled form: text, the order of its parameters, the
conversions of what goes in and comes out.

Refuses (``prepare`` answers None, and SQLAlchemy executes it): what needs more than that, such as defaults made by the
column, literals rendered at execution, or an empty IN. Fails: with SQLAlchemy's own exceptions.
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Executable
from sqlalchemy.engine import Dialect
from sqlalchemy.engine.result import SimpleResultMetaData
from sqlalchemy.engine.row import Row
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import Insert, Update

_REQUIRED = object()
_Slot = tuple[str, str, Any, Callable[[Any], Any] | None]  # key, name, value if not given, conversion


class Prepared:
    """One compiled statement. ``names`` of the result are those of the statement, or the cursor's for plain text."""

    def __init__(self, compiled: SQLCompiler, dialect: Dialect) -> None:
        self.text = str(compiled)
        converters: Mapping[str, Any] = compiled._bind_processors
        slots: dict[str, _Slot] = {}
        for bind, name in compiled.bind_names.items():
            convert = converters.get(name)
            value = _REQUIRED if bind.required else bind.effective_value
            if value is not _REQUIRED and convert is not None:
                value = convert(value)
            slots[name] = (bind.key, name, value, convert)
        self.positional = bool(compiled.positional)
        order = compiled.positiontup if self.positional else list(slots)
        self._slots = [slots[name] for name in order or ()]
        self._in = {param.key for param in compiled.post_compile_params}
        self._names: list[str] | None = None
        self._make: Callable[[Sequence[Any]], Any] | None = None
        self._dialect = dialect
        self._columns = compiled._result_columns

    def _shape(self, description: Sequence[Any]) -> None:
        """How rows are made: a conversion may depend on the type that the database names."""
        columns, dialect = self._columns, self._dialect
        names = [column.keyname for column in columns] or [column[0] for column in description]
        types = [column[1] for column in description]
        found = [c.type._cached_result_processor(dialect, t) for c, t in zip(columns, types, strict=False)]
        converters = found if any(found) else None
        meta = SimpleResultMetaData(names)
        indexes = meta._key_to_index
        self._make = lambda data: Row(meta, converters, indexes, data)

    def bind(self, params: Mapping[str, Any]) -> tuple[str, Any] | None:
        """The text and the values for the driver; None if this call is one for SQLAlchemy."""
        if self._in:
            return self._bind_lists(params)
        values: Any = [
            (value if key not in params else params[key] if convert is None else convert(params[key]))
            for key, _, value, convert in self._slots
        ]
        if _REQUIRED in values:
            return None  # it says so better than we would
        if not self.positional:
            values = {slot[1]: value for slot, value in zip(self._slots, values, strict=True)}
        return self.text, values

    def _bind_lists(self, params: Mapping[str, Any]) -> tuple[str, Any] | None:
        text = self.text
        listed: list[Any] = []
        named: dict[str, Any] = {}
        for key, name, value, convert in self._slots:
            given = params.get(key, value)
            if given is _REQUIRED:
                return None
            if key not in self._in:
                found = value if key not in params else given if convert is None else convert(given)
                listed.append(found)
                named[name] = found
                continue
            if not given:
                return None
            items = list(given) if convert is None else [convert(one) for one in given]
            listed += items
            if self.positional:
                places = "?" + ", ?" * (len(items) - 1)
            else:
                names = [f"{name}_{number}" for number in range(1, len(items) + 1)]
                named.update(zip(names, items, strict=True))
                places = ", ".join(f"%({one})s" for one in names)
            text = text.replace(f"(__[POSTCOMPILE_{name}])", f"({places})")
        return text, listed if self.positional else named

    def rows(self, cursor: Any) -> list[Any]:
        """What a cursor that executed this found."""
        if cursor.description is None:
            return []
        if self._make is None:
            self._shape(cursor.description)
        make = self._make
        assert make is not None
        return [make(data) for data in cursor.fetchall()]


class Statements:
    """The prepared statements of one database. A statement is prepared when it is executed for the second time: those
    that are built for one call never come again."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._known: weakref.WeakKeyDictionary[Executable, Any] = weakref.WeakKeyDictionary()

    def __len__(self) -> int:
        return len(self._known)

    def prepare(self, statement: Executable, params: Mapping[str, Any]) -> Prepared | None:
        found = self._known.get(statement)
        if found is None:
            self._known[statement] = {} if isinstance(statement, Insert | Update) else _ONCE
            return None
        if type(found) is dict:  # which columns it writes follows from what it is given
            keys = frozenset(params)
            prepared = found.get(keys, _ONCE)
            if prepared is _ONCE:
                prepared = found[keys] = self._compile(statement, list(params))
        elif found is _ONCE:
            prepared = self._known[statement] = self._compile(statement, None) or _NEVER
        else:
            prepared = found
        return None if prepared is _NEVER else prepared

    def _compile(self, statement: Any, keys: list[str] | None) -> Prepared | None:
        compiled = statement.compile(dialect=self._dialect, column_keys=keys)
        special = (
            compiled.insert_prefetch
            or compiled.update_prefetch
            or compiled.literal_execute_params
            or getattr(compiled, "escaped_bind_names", None)
        )
        return None if special else Prepared(compiled, self._dialect)

    def failure(self, text: str, values: Any, error: Exception, driver: Any, connection: Any) -> BaseException:
        """The driver's exception as SQLAlchemy would raise it."""
        lost = isinstance(error, driver.Error) and self._dialect.is_disconnect(error, connection, None)
        return DBAPIError.instance(
            text, values, error, driver.Error, connection_invalidated=lost, dialect=self._dialect
        )


_ONCE: Any = object()  # seen once
_NEVER: Any = object()  # SQLAlchemy executes it
