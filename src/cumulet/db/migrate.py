"""The schema of a database, brought up to date.

``upgrade(url)`` is harmless to repeat and to run in several processes at once. A current schema is recognised by one
query; Alembic (0.6 s, 44 MB) is imported only when there is something to do.

``python -m cumulet.db.migrate initial`` writes the first migration anew from the tables (before the first release);
``… revision MESSAGE`` writes the next one from the difference to a database at the newest revision;
``… upgrade URL`` upgrades. What is written is a draft: read it, then ``ruff format`` it.
"""

import importlib
import pkgutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, MetaData, inspect, text

from cumulet.db.database import Database
from cumulet.db.migrations import HEAD
from cumulet.db.schema import METADATA

_HERE = Path(__file__).parent / "migrations"
_VERSION = text("SELECT version_num FROM alembic_version")
_LOCK = text("SELECT pg_advisory_xact_lock(7203461092)")


def load_tables() -> MetaData:
    """METADATA with every table of the product: those of all modules named ``tables``."""
    import cumulet

    for package in ("saga", "conductor", "reconcile"):
        importlib.import_module(f"cumulet.{package}.tables")
    services = Path(cumulet.__file__).parent / "services"
    for module in pkgutil.iter_modules([str(services)]):
        if module.ispkg and (services / module.name / "tables.py").exists():
            importlib.import_module(f"cumulet.services.{module.name}.tables")
    return METADATA


def current(db: Database) -> str | None:
    """The revision of the database; None: no schema of ours."""
    with db.engine.connect() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        row = connection.execute(_VERSION).first()
        return None if row is None else str(row[0])


def upgrade(target: str | Database) -> bool:
    """Bring the schema up to date; True if there was something to do."""
    db = Database(target) if isinstance(target, str) else target
    try:
        if current(db) == HEAD:
            return False
        _with_alembic(db, "upgrade")
        return True
    finally:
        if isinstance(target, str):
            db.close()


def _with_alembic(db: Database, what: str, **options: Any) -> None:
    from alembic import command

    with db.engine.connect() as connection:
        connection.info["immediate"] = not db.is_postgres
        try:
            with connection.begin():
                if db.is_postgres:
                    connection.execute(_LOCK)
                config = _config(connection)
                config.attributes["batch"] = options.get("rev_id") != "0001" and not db.is_postgres
                if what == "upgrade":
                    command.upgrade(config, "head")
                else:
                    command.revision(config, autogenerate=True, **options)
        finally:
            connection.info["immediate"] = False


def _config(connection: Connection | None = None) -> Any:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_HERE))
    config.attributes["connection"] = connection
    return config


# -- for developers ------------------------------------------------------------------------------------------------


def write_revision(message: str, revision: str) -> None:
    """Write the difference between the newest revision and the tables as the next migration."""
    with tempfile.TemporaryDirectory() as directory:
        db = Database(f"sqlite:///{directory}/schema.db")
        if revision != "0001":
            _with_alembic(db, "upgrade")
        _with_alembic(db, "revision", message=message, rev_id=revision)
        db.close()
    for path in (_HERE / "versions").glob(f"{revision}_*.py"):
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if "###" not in line))
    module = _HERE / "__init__.py"
    module.write_text(module.read_text().replace(f'HEAD = "{HEAD}"', f'HEAD = "{revision}"'))


def write_initial() -> None:
    for old in (_HERE / "versions").glob("[0-9]*.py"):
        old.unlink()
    write_revision("initial schema", "0001")
    next((_HERE / "versions").glob("0001*.py")).rename(_HERE / "versions" / "0001_initial.py")


def main(arguments: list[str]) -> int:
    match arguments:
        case ["initial"]:
            write_initial()
        case ["revision", message]:
            write_revision(message, f"{int(HEAD) + 1:04d}")
        case ["upgrade", url]:
            print("upgraded" if upgrade(url) else "up to date")
        case _:
            print(__doc__)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
