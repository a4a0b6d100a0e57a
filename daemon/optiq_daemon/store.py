"""The daemon's SQLite file: WAL, one writer, numbered migrations.

All calls are made from the event loop's thread, so that a change in memory and its row are one step that nothing can
come between; a statement here takes well under a millisecond. Documents are JSON of msgspec structs.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from optiq_core.errors import OptiqError


class StoreError(OptiqError):
    """A database that this version cannot use."""


class Store:
    """One connection to the database, brought to the newest migration when opened.

    Args:
        path: the file; made if missing.

    Raises:
        StoreError: not a database, or written by a newer version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._connection = sqlite3.connect(path, isolation_level=None)
            self._connection.row_factory = sqlite3.Row
            for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON", "busy_timeout = 5000"):
                self._connection.execute(f"PRAGMA {pragma}")
            self._migrate()
        except sqlite3.DatabaseError as error:
            raise StoreError(f"{path}: not a database that can be used: {error}") from error

    def close(self) -> None:
        """Close the file; the journal is folded in."""
        self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All statements inside, or none of them. Inside another transaction: part of that one."""
        if self._connection.in_transaction:
            yield
            return
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def execute(self, statement: str, parameters: Iterable[Any] = ()) -> sqlite3.Cursor:
        """Run one statement."""
        return self._connection.execute(statement, tuple(parameters))

    def rows(self, statement: str, parameters: Iterable[Any] = ()) -> list[sqlite3.Row]:
        """All rows of one query."""
        return self.execute(statement, parameters).fetchall()

    def row(self, statement: str, parameters: Iterable[Any] = ()) -> sqlite3.Row | None:
        """The first row of one query."""
        row: sqlite3.Row | None = self.execute(statement, parameters).fetchone()
        return row

    def tenants(self) -> list[str]:
        """Ids in alphabetical order."""
        return [row["id"] for row in self.rows("SELECT id FROM tenants ORDER BY id")]

    def has_tenant(self, tenant: str) -> bool:
        """Whether there is a tenant with this id."""
        return self.row("SELECT 1 FROM tenants WHERE id = ?", (tenant,)) is not None

    def add_tenant(self, tenant: str) -> bool:
        """Add a tenant; False if it was there."""
        statement = "INSERT OR IGNORE INTO tenants (id, create_time) VALUES (?, ?)"
        return self.execute(statement, (tenant, time.time())).rowcount > 0

    def _migrate(self) -> None:
        migrations = list(migration_files())
        version = int(self._connection.execute("PRAGMA user_version").fetchone()[0])
        if version > len(migrations):
            raise StoreError(
                f"{self.path}: written by a newer version (schema {version}, this version knows {len(migrations)}); "
                "install that version, or use another home"
            )
        for number, (name, sql) in enumerate(migrations[version:], start=version + 1):
            try:
                # executescript commits what is open, so the script itself carries the transaction.
                self._connection.executescript(f"BEGIN IMMEDIATE;\n{sql}\nPRAGMA user_version = {number};\nCOMMIT;")
            except sqlite3.Error as error:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise StoreError(f"{self.path}: migration {name} failed: {error}") from error


def migration_files() -> Iterator[tuple[str, str]]:
    """Name and SQL of every migration, in order.

    Raises:
        StoreError: the numbers are not 1, 2, 3, ...
    """
    folder = resources.files("optiq_daemon.migrations")
    files = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".sql")), key=lambda entry: entry.name)
    for expected, file in enumerate(files, start=1):
        if not file.name.startswith(f"{expected:04d}_"):
            raise StoreError(f"migration {file.name}: expected number {expected:04d}")
        yield file.name, file.read_text("utf-8")
