"""Migrations by Alembic. ``HEAD`` is the newest revision, so that a start with a current schema imports no Alembic."""

HEAD = "0010"
