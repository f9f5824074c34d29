"""The journal of a site: what was intended, what was started, what is done. One SQLite file, readable with any client.

Intent goes in before a remote call and the returned handle after it, so that a cycle which was killed anywhere is
taken up again by the next one. Locks are file locks: the kernel drops them when a process dies, however it dies.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from filmloop.core.clock import new_id, utc_now
from filmloop.core.documents import AliasMove
from filmloop.core.errors import DataError, FilmloopError, TransientError
from filmloop.core.fsio import disk_errors, try_lock
from filmloop.core.retry import wait_until

_SCHEMA = """
CREATE TABLE IF NOT EXISTS cycles (
  cycle_id TEXT PRIMARY KEY, started_utc TEXT NOT NULL, finished_utc TEXT, outcome TEXT, summary TEXT
) STRICT;
CREATE TABLE IF NOT EXISTS steps (
  cycle_id TEXT NOT NULL REFERENCES cycles, name TEXT NOT NULL, begun_utc TEXT NOT NULL, ended_utc TEXT,
  handle TEXT, result TEXT, seconds REAL NOT NULL DEFAULT 0, attempts INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (cycle_id, name)
) STRICT;
CREATE TABLE IF NOT EXISTS shards (
  shard_id TEXT PRIMARY KEY, state TEXT NOT NULL, cycle_id TEXT NOT NULL, held_by TEXT NOT NULL DEFAULT '',
  utc TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS open_cycles ON cycles (started_utc) WHERE finished_utc IS NULL;
CREATE TABLE IF NOT EXISTS alias_moves (
  move_id INTEGER PRIMARY KEY, utc TEXT NOT NULL, model TEXT NOT NULL, alias TEXT NOT NULL, from_version TEXT NOT NULL,
  to_version TEXT NOT NULL, who TEXT NOT NULL, why TEXT NOT NULL, cycle_id TEXT NOT NULL, finished INTEGER NOT NULL
) STRICT;
"""
_SCHEMA_VERSION = 1

TRAINED = "trained"
"""A shard that a finished cycle has trained on; retention may delete it."""
DAMAGED = "damaged"
"""A shard whose bytes are not what its manifest says; no cycle takes it, and it is kept for a person to look at."""
IN_CYCLE = "in_cycle"
"""A shard that an open cycle has chosen; nothing may delete it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRow:
    """One step of a cycle as journalled. `result` is None until it is done."""

    name: str
    handle: str | None
    result: dict[str, Any] | None
    seconds: float
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CycleRow:
    """One cycle as journalled. `outcome` is '' while it is open."""

    cycle_id: str
    started_utc: str
    finished_utc: str
    outcome: str
    summary: dict[str, Any] = field(default_factory=dict)


class Ledger:
    """Opens, or creates, the journal at `path`. Usable from several threads and processes.

    Args:
        path: The file.
        read_only: Only look: nothing is created or written, and an absent journal is an empty one.

    Raises:
        DataError: the file is not such a journal.
        TransientError: the disk refuses.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self._mutex = threading.RLock()
        if not read_only:
            with disk_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
        with self._translated():
            self._db = _look(path) if read_only else _open(path)
            found = self._db.execute("PRAGMA user_version").fetchone()[0]
            if found != _SCHEMA_VERSION:
                self.close()
                raise DataError(
                    f"{path} is a ledger of schema {found}; this filmloop writes {_SCHEMA_VERSION}.",
                    hint="Use the filmloop that wrote it, or another FILMLOOP_HOME.",
                    ids={"path": str(path)},
                )

    def close(self) -> None:
        """Close the file; may be called twice."""
        self._db.close()

    def __enter__(self) -> Self:
        """Use as a context manager: closed at the end of the block."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Close."""
        self.close()

    # Cycles and their steps

    @contextmanager
    def cycle_lock(self) -> Iterator[bool]:
        """Hold the right to run a cycle; yields False if another process has it."""
        with try_lock(self.path.with_name("cycle.lock")) as free:
            yield free

    def open_cycle(self) -> CycleRow | None:
        """The cycle that was begun and not finished, if there is one."""
        rows = self._cycles("WHERE finished_utc IS NULL ORDER BY rowid LIMIT 1")
        return rows[0] if rows else None

    def start_cycle(self) -> CycleRow:
        """Begin a new cycle."""
        cycle_id = new_id("c")
        self._run("INSERT INTO cycles (cycle_id, started_utc) VALUES (?, ?)", cycle_id, utc_now())
        return self.cycle(cycle_id)

    def cycle(self, cycle_id: str) -> CycleRow:
        """One cycle.

        Raises:
            DataError: there is no such cycle.
        """
        rows = self._cycles("WHERE cycle_id = ?", cycle_id)
        if not rows:
            raise DataError(f"No cycle {cycle_id}.", hint="`filmloop history` lists them.", ids={"cycle_id": cycle_id})
        return rows[0]

    def finish_cycle(
        self, cycle_id: str, outcome: str, summary: dict[str, Any], *, trained: Iterable[str] = ()
    ) -> None:
        """Close a cycle; in the same transaction its shards become trained, or free again."""
        with self._transaction():
            for shard_id in trained:
                self._mark(shard_id, TRAINED, cycle_id)
            self._db.execute("DELETE FROM shards WHERE state = ? AND held_by = ?", (IN_CYCLE, cycle_id))
            self._db.execute("UPDATE shards SET held_by = '' WHERE held_by = ?", (cycle_id,))
            self._db.execute(
                "UPDATE cycles SET finished_utc = ?, outcome = ?, summary = ? WHERE cycle_id = ?",
                (utc_now(), outcome, json.dumps(summary), cycle_id),
            )

    def history(self, limit: int = 20, *, outcome: str = "") -> list[CycleRow]:
        """The latest cycles, or those that ended with `outcome`, newest first: as they were begun, whatever the clock said."""
        return self._cycles("WHERE ? IN ('', outcome) ORDER BY rowid DESC LIMIT ?", outcome, limit)

    def begin_step(self, cycle_id: str, name: str) -> StepRow:
        """Journal the intent to do a step; one that is done comes back with its result."""
        with self._transaction():
            self._db.execute(
                "INSERT OR IGNORE INTO steps (cycle_id, name, begun_utc) VALUES (?, ?, ?)", (cycle_id, name, utc_now())
            )
            self._db.execute(
                "UPDATE steps SET attempts = attempts + 1 WHERE cycle_id = ? AND name = ? AND result IS NULL",
                (cycle_id, name),
            )
        return next(step for step in self.steps(cycle_id) if step.name == name)

    def forgive_attempt(self, cycle_id: str) -> None:
        """Do not count the latest attempt at the step that is not done."""
        self._run(
            "UPDATE steps SET attempts = attempts - 1 WHERE cycle_id = ? AND result IS NULL AND attempts > 0", cycle_id
        )

    def keep_handle(self, cycle_id: str, name: str, handle: str) -> None:
        """Journal what a remote call returned."""
        self._run("UPDATE steps SET handle = ? WHERE cycle_id = ? AND name = ?", handle, cycle_id, name)

    def end_step(self, cycle_id: str, name: str, result: dict[str, Any], seconds: float) -> None:
        """Journal that a step is done, and what it made."""
        self._run(
            "UPDATE steps SET result = ?, ended_utc = ?, seconds = seconds + ? WHERE cycle_id = ? AND name = ?",
            json.dumps(result),
            utc_now(),
            seconds,
            cycle_id,
            name,
        )

    def add_step_time(self, cycle_id: str, name: str, seconds: float) -> None:
        """Journal time spent in a step that was not finished."""
        self._run("UPDATE steps SET seconds = seconds + ? WHERE cycle_id = ? AND name = ?", seconds, cycle_id, name)

    def steps(self, cycle_id: str) -> list[StepRow]:
        """The steps of a cycle in their order."""
        rows = self._query(
            "SELECT name, handle, result, seconds, attempts FROM steps WHERE cycle_id = ? ORDER BY rowid", cycle_id
        )
        return [
            StepRow(name=n, handle=h, result=None if r is None else json.loads(r), seconds=s, attempts=a)
            for n, h, r, s, a in rows
        ]

    # Shards

    def choose_shards(self, cycle_id: str, shard_ids: Iterable[str]) -> None:
        """Keep retention away from these until the cycle is finished; trained ones keep their state."""
        with self._transaction():
            for shard_id in shard_ids:
                self._db.execute(
                    "INSERT INTO shards (shard_id, state, cycle_id, held_by, utc) VALUES (?, ?, ?, ?, ?)"
                    " ON CONFLICT (shard_id) DO UPDATE SET held_by = excluded.held_by",
                    (shard_id, IN_CYCLE, cycle_id, cycle_id, utc_now()),
                )

    def set_aside(self, cycle_id: str, shard_id: str) -> None:
        """Mark a shard as damaged."""
        with self._transaction():
            self._mark(shard_id, DAMAGED, cycle_id)

    def forget_shards(self, *, keep: set[str]) -> None:
        """Drop the rows of all shards but these: what retention has deleted needs no state."""
        gone = [shard_id for shard_id in self.shard_states() if shard_id not in keep]
        with self._transaction():
            self._db.executemany("DELETE FROM shards WHERE shard_id = ?", [(shard_id,) for shard_id in gone])

    def take_back(self, shard_id: str) -> None:
        """A shard that was marked as damaged is whole again: it counts as fresh."""
        self._run("DELETE FROM shards WHERE shard_id = ? AND state = ?", shard_id, DAMAGED)

    def shard_states(self) -> dict[str, str]:
        """State by shard id; a shard that is not listed is sealed and fresh."""
        return dict(self._query("SELECT shard_id, state FROM shards"))

    def may_expire(self, shard_id: str) -> bool:
        """Whether retention may delete the shard: it was trained on, and no open cycle holds it."""
        return self._query("SELECT state, held_by FROM shards WHERE shard_id = ?", shard_id) == [(TRAINED, "")]

    # Audit trail of alias moves (ports.audit.AuditTrail)

    @contextmanager
    def alias_lock(self) -> Iterator[None]:
        """Hold the right to move aliases, waiting up to ten seconds for it.

        Raises:
            TransientError: somebody else holds it.
        """
        end = time.monotonic() + 10
        while True:
            with try_lock(self.path.with_name("alias.lock")) as free:
                if free:
                    yield
                    return
            if time.monotonic() > end:
                raise TransientError("Another process is moving an alias.", hint="Try again in a few seconds.")
            time.sleep(0.05)

    def begin_move(self, move: AliasMove) -> int:
        """Journal the intent to move an alias; returns the number that `end_move` or `drop_move` takes."""
        cursor = self._run(
            "INSERT INTO alias_moves (utc, model, alias, from_version, to_version, who, why, cycle_id, finished)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0)",
            *(move.utc, move.model, move.alias, move.from_version, move.to_version, move.who, move.why, move.cycle_id),
        )
        return int(cursor.lastrowid or 0)

    def end_move(self, move_id: int) -> None:
        """Journal that the alias was moved."""
        self._run("UPDATE alias_moves SET finished = 1 WHERE move_id = ?", move_id)

    def drop_move(self, move_id: int) -> None:
        """Forget an intent that came to nothing."""
        self._run("DELETE FROM alias_moves WHERE move_id = ? AND finished = 0", move_id)

    def pending_moves(self) -> list[tuple[int, AliasMove]]:
        """Moves that were intended and neither finished nor dropped, oldest first."""
        return self._moves("WHERE finished = 0 ORDER BY move_id")

    def moves(self, model: str, alias: str | None = None, limit: int = 100) -> list[AliasMove]:
        """Finished moves of a model, newest first."""
        rows = self._moves(
            "WHERE finished = 1 AND model = ? AND (? IS NULL OR alias = ?) ORDER BY move_id DESC LIMIT ?",
            *(model, alias, alias, limit),
        )
        return [move for _move_id, move in rows]

    # The database

    def _mark(self, shard_id: str, state: str, cycle_id: str) -> None:
        self._db.execute(
            "INSERT INTO shards (shard_id, state, cycle_id, utc) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (shard_id) DO UPDATE SET state = excluded.state, cycle_id = excluded.cycle_id, utc = excluded.utc",
            (shard_id, state, cycle_id, utc_now()),
        )

    def _cycles(self, where: str, *values: object) -> list[CycleRow]:
        rows = self._query(f"SELECT cycle_id, started_utc, finished_utc, outcome, summary FROM cycles {where}", *values)
        return [
            CycleRow(cycle_id=c, started_utc=s, finished_utc=f or "", outcome=o or "", summary=json.loads(j or "{}"))
            for c, s, f, o, j in rows
        ]

    def _moves(self, where: str, *values: object) -> list[tuple[int, AliasMove]]:
        columns = "utc, model, alias, from_version, to_version, who, why, cycle_id"
        rows = self._query(f"SELECT move_id, {columns} FROM alias_moves {where}", *values)
        names = columns.split(", ")
        return [(row[0], AliasMove(**dict(zip(names, row[1:], strict=True)))) for row in rows]

    def _query(self, sql: str, *values: object) -> list[Any]:
        with self._translated(), self._mutex:
            return self._db.execute(sql, values).fetchall()

    def _run(self, sql: str, *values: object) -> sqlite3.Cursor:
        with self._translated(), self._mutex:
            return self._db.execute(sql, values)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._translated(), self._mutex:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except FilmloopError:
            raise
        except sqlite3.OperationalError as exc:
            raise TransientError(
                f"The ledger {self.path} cannot be used now: {exc}.",
                hint="Free disk space, or see who holds the file; nothing was changed.",
                ids={"path": str(self.path)},
            ) from exc
        except sqlite3.DatabaseError as exc:
            raise DataError(
                f"{self.path} is not a ledger: {exc}.",
                hint="Move the file away: the next cycle begins a new one. The registry and the shards stay as they are.",
                ids={"path": str(self.path)},
            ) from exc


def _connect(name: str, *, uri: bool = False) -> sqlite3.Connection:
    db = sqlite3.connect(name, timeout=30, isolation_level=None, check_same_thread=False, uri=uri)
    db.execute("PRAGMA synchronous = FULL")
    return db


def _open(path: Path) -> sqlite3.Connection:
    """A connection that may write; the file is created if need be, by one process while others wait."""

    def opened() -> sqlite3.Connection | None:
        # SQLite's own patience does not cover the switch to WAL: two that create the file at once would fail.
        with try_lock(path.with_name("create.lock")) as ours:
            return _created(_connect(str(path))) if ours else None

    return wait_until(
        opened, deadline_s=30, what=f"Opening {path} while another process does", first_s=0.002, cap_s=0.05
    )


def _created(db: sqlite3.Connection) -> sqlite3.Connection:
    if db.execute("PRAGMA user_version").fetchone()[0] == 0:
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(_SCHEMA)
        db.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
    return db


def _look(path: Path) -> sqlite3.Connection:
    """A connection that cannot write; on a read-only disk, where SQLite cannot lock, the file is taken as it lies.

    A journal that is absent, or that somebody is creating just now, is an empty one.
    """
    if path.exists():
        for how in ("mode=ro", "immutable=1"):
            db = _connect(f"{path.resolve().as_uri()}?{how}", uri=True)
            with suppress(sqlite3.OperationalError):
                if db.execute("PRAGMA user_version").fetchone()[0]:
                    return db
            db.close()
    return _created(_connect(":memory:"))
