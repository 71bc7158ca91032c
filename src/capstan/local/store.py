"""The state of the embedded control plane: memory is the state, a SQLite log makes it durable.

Every write takes the next revision, changes memory at once and joins the batch that is forming. A writer thread
commits one batch at a time (`synchronous=FULL`); what arrives meanwhile forms the next. Callers await
`committed(revision)` before they answer, and watchers hear of an event only after its commit, so nothing that anybody
saw can be lost.

History is the window of recent events: a watch is a slice of it, a list at an older revision is the present with the
later events undone. Events that leave the window raise the `floor`; older revisions are refused with `Compacted`, and
the rows that nobody can ask for any more are deleted. The log is one table, `log(rev, key, type, value)`; row 0 holds
the floor.

All methods belong to the event loop's thread. A key is `/<group>/<plural>/<namespace>/<name>` with empty parts left
empty.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import threading
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, TextIO

import msgspec

EventType = Literal["ADDED", "MODIFIED", "DELETED"]
_CODES: dict[EventType, int] = {"ADDED": 0, "MODIFIED": 1, "DELETED": 2}
_TYPES: tuple[EventType, ...] = ("ADDED", "MODIFIED", "DELETED")
_ROWS_PER_STATEMENT = 500
_DEAD_ROWS_PER_SWEEP = 512

encode = msgspec.json.encode
decode = msgspec.json.decode


class StoreError(Exception):
    """Base of the store's errors."""


class Compacted(StoreError):
    """Revision {asked} is no longer kept; the oldest one is {floor}"""

    def __init__(self, asked: int, floor: int) -> None:
        super().__init__(f"revision {asked} is no longer kept; the oldest one is {floor}")
        self.floor = floor


class DataDirectoryInUse(StoreError):
    """The data directory belongs to another running process"""

    hint = "stop the other `capstan up`, or choose another --data-dir"


class LogUnreadable(StoreError):
    """The data directory cannot be used, or what it holds is not our log"""


class LogFailed(StoreError):
    """The log cannot be written; the control plane takes no more writes. Free disk space, then start again"""


class Record(msgspec.Struct, gc=False):
    """One version of one object. `labels` and `fields` (by apiVersion) are filled by whoever first selects on them."""

    key: str
    revision: int
    value: bytes
    labels: dict[str, str] | None = None
    fields: dict[str, dict[str, str]] | None = None

    def decode(self) -> dict[str, Any]:
        """A fresh dict that the caller may change."""
        document: dict[str, Any] = decode(self.value)
        return document


class Event(msgspec.Struct, gc=False):
    """A change. For DELETED, `record` is the last state with the revision of the deletion."""

    type: EventType
    record: Record
    previous: Record | None

    @property
    def revision(self) -> int:
        return self.record.revision


class Table:
    """All objects of one resource (`/<group>/<plural>/`), in key order, with their events in the window."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.objects: dict[str, Record] = {}
        self.keys: list[str] = []
        self.events: deque[Event] = deque()
        self.listeners: list[Callable[[Event], None]] = []

    def records(self, prefix: str, after: str = "") -> Iterator[Record]:
        """The present records under a key prefix, in key order, those past key `after` only."""
        start = bisect_left(self.keys, max(prefix, after + "\0" if after else ""))
        for index in range(start, len(self.keys)):
            key = self.keys[index]
            if not key.startswith(prefix):
                return
            yield self.objects[key]

    def count(self, prefix: str) -> int:
        return bisect_left(self.keys, prefix[:-1] + chr(ord(prefix[-1]) + 1)) - bisect_left(self.keys, prefix)

    def apply(self, event: Event) -> None:
        record = event.record
        if event.type == "DELETED":
            del self.objects[record.key]
            del self.keys[bisect_left(self.keys, record.key)]
        else:
            if record.key not in self.objects:
                insort(self.keys, record.key)
            self.objects[record.key] = record


def table_prefix(key: str) -> str:
    """`/<group>/<plural>/` of a key."""
    return key[: key.index("/", key.index("/", 1) + 1) + 1]


class Store:
    """`path` is the database file, None keeps everything in memory only. `window` bounds the bytes of superseded
    values."""

    def __init__(self, path: Path | None = None, *, window: int = 64 << 20, window_events: int = 100_000) -> None:
        self.revision = 0
        self.durable = 0
        """Everything up to here is committed and was told to watchers."""
        self.floor = 0
        """Watches and lists may start here or later."""
        self._path = path
        self._window_limit = window
        self._window_events = window_events
        self._window: deque[Event] = deque()
        self._window_bytes = 0
        self._tables: dict[str, Table] = {}
        self._pending: deque[Event] = deque()
        self._forming: list[Event] = []
        self._dead: list[int] = []
        self._committing = False
        self._flush_scheduled = False
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._failure: LogFailed | None = None
        self._batches: SimpleQueue[tuple[list[Event], list[int], int] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock: TextIO | None = None

    async def open(self) -> None:
        """Take the directory's lock, replay the log, start the writer. Raises DataDirectoryInUse and LogUnreadable."""
        self._loop = asyncio.get_running_loop()
        if self._path is None:
            return
        try:
            self._open(self._path)
        except (OSError, sqlite3.DatabaseError) as error:
            if self._lock is not None:
                self._lock.close()
            raise LogUnreadable(
                f"{self._path} cannot be opened: {error}; repair it, or choose another --data-dir"
            ) from error

    def _open(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Held until close(); opening a local file does not block.
        self._lock = open(path.with_suffix(".lock"), "a+")  # noqa: SIM115
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            owner = self._lock.read().strip()
            self._lock.close()
            raise DataDirectoryInUse(
                f"{path.parent} is in use by process {owner or 'unknown'}; {DataDirectoryInUse.hint}"
            ) from None
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=FULL")
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS log (rev INTEGER PRIMARY KEY, key TEXT, type INTEGER, value BLOB)"
        )
        self._replay()
        self._thread = threading.Thread(target=self._write, name="store-writer", daemon=True)
        self._thread.start()

    def _replay(self) -> None:
        floor = self._database.execute("SELECT value FROM log WHERE rev = 0").fetchone()
        self.floor = int(floor[0]) if floor else 0
        revision = self.floor
        rows = self._database.execute("SELECT rev, key, type, value FROM log WHERE rev > 0 ORDER BY rev")
        for revision, key, code, value in rows:
            table = self.table(table_prefix(key))
            event = Event(_TYPES[code], Record(key, revision, value), table.objects.get(key))
            if revision > self.floor:
                self._remember(table, event)
            if event.type != "DELETED" or event.previous is not None:
                table.apply(event)
        self.revision = self.durable = max(revision, self.floor)
        self._trim()

    async def close(self) -> None:
        """Commit what is pending, stop the writer, release the lock."""
        if self._thread is None:
            return
        if self._failure is None:
            await self.committed(self.revision)
        self._batches.put(None)
        await self._loop.run_in_executor(None, self._thread.join)
        self._thread = None
        self._failure = self._failure or LogFailed(f"the log {self._path} is closed")
        self._database.close()
        if self._lock is not None:
            self._lock.close()

    @property
    def failed(self) -> bool:
        """Whether the log could not be written; nothing is accepted any more."""
        return self._failure is not None

    # Reading

    def table(self, prefix: str) -> Table:
        found = self._tables.get(prefix)
        if found is None:
            found = self._tables[prefix] = Table(prefix)
        return found

    def get(self, key: str) -> Record | None:
        return self.table(table_prefix(key)).objects.get(key)

    def records_at(self, table: Table, prefix: str, revision: int, after: str = "") -> list[Record]:
        """The records under `prefix` as they were at `revision`. Raises Compacted below the floor."""
        if revision < self.floor:
            raise Compacted(revision, self.floor)
        undone: dict[str, Record | None] = {}
        for event in reversed(table.events):
            if event.revision <= revision:
                break
            undone[event.record.key] = event.previous
        present = {record.key: record for record in table.records(prefix, after)}
        for key, record in undone.items():
            if key.startswith(prefix) and key > after:
                if record is None:
                    present.pop(key, None)
                else:
                    present[key] = record
        return [present[key] for key in sorted(present)]

    def events_since(self, table: Table, revision: int) -> list[Event]:
        """The committed events of a table after `revision`, oldest first. Raises Compacted below the floor."""
        if revision < self.floor:
            raise Compacted(revision, self.floor)
        found: list[Event] = []
        for event in reversed(table.events):
            if event.revision <= revision:
                break
            if event.revision <= self.durable:
                found.append(event)
        found.reverse()
        return found

    async def committed(self, revision: int) -> None:
        """Return once `revision` is durable. Raises LogFailed when it never will be."""
        if revision <= self.durable:
            return
        if self._failure is not None:
            raise self._failure
        future = self._loop.create_future()
        self._waiters.append((revision, future))
        await future

    # Writing

    def put(self, key: str, document: dict[str, Any]) -> Record:
        """Create or replace. The document's `metadata.resourceVersion` becomes the new revision."""
        return self._append(key, document, "MODIFIED" if self.get(key) else "ADDED")

    def delete(self, key: str, document: dict[str, Any]) -> Record:
        """Remove a key that exists; `document` is its last state, as watchers get to see it."""
        return self._append(key, document, "DELETED")

    def _append(self, key: str, document: dict[str, Any], kind: EventType) -> Record:
        if self._failure is not None:
            raise self._failure
        document["metadata"]["resourceVersion"] = str(self.revision + 1)
        record = Record(key, self.revision + 1, encode(document))
        table = self.table(table_prefix(key))
        event = Event(kind, record, table.objects.get(key))
        self.revision += 1
        self._remember(table, event)
        table.apply(event)
        self._pending.append(event)
        if self._thread is None:
            self._publish(self.revision)
        else:
            self._forming.append(event)
            self._flush_soon()
        return record

    def _remember(self, table: Table, event: Event) -> None:
        self._window.append(event)
        table.events.append(event)
        self._window_bytes += _superseded_bytes(event)

    def _trim(self) -> None:
        window = self._window
        while window and (self._window_bytes > self._window_limit or len(window) > self._window_events):
            event = window[0]
            if event.revision > self.durable:
                break
            window.popleft()
            self.table(table_prefix(event.record.key)).events.popleft()
            self._window_bytes -= _superseded_bytes(event)
            self.floor = event.revision
            if event.previous is not None:
                self._dead.append(event.previous.revision)
            if event.type == "DELETED":
                self._dead.append(event.revision)

    def compact(self) -> None:
        """Forget the whole history now: every revision before the present one is refused from here on."""
        limit, self._window_limit = self._window_limit, -1
        self._trim()
        self._window_limit = limit

    def _flush_soon(self) -> None:
        """Not at once: what the requests of this turn of the loop write, or those that were just answered, joins the
        batch."""
        if not self._committing and not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        if self._committing or not self._forming:
            return
        dead: list[int] = []
        if len(self._dead) >= _DEAD_ROWS_PER_SWEEP:
            dead, self._dead = self._dead, []
        batch, self._forming = self._forming, []
        self._committing = True
        self._batches.put((batch, dead, self.floor))

    def _committed_batch(self, revision: int) -> None:
        self._committing = False
        self._publish(revision)
        self._flush_soon()

    def _publish(self, revision: int) -> None:
        self.durable = revision
        pending = self._pending
        while pending and pending[0].revision <= revision:
            event = pending.popleft()
            for listener in self.table(table_prefix(event.record.key)).listeners:
                listener(event)
        waiters = self._waiters
        # Revisions are awaited nearly in order, but a reader may wait for an older one than the writer before it.
        for _ in range(len(waiters)):
            wanted, future = waiters.popleft()
            if wanted > revision:
                waiters.append((wanted, future))
            elif not future.done():
                future.set_result(None)
        self._trim()

    def _failed(self, error: sqlite3.Error) -> None:
        self._failure = LogFailed(f"the log {self._path} cannot be written: {error}")
        for _, future in self._waiters:
            if not future.done():
                future.set_exception(self._failure)
        self._waiters.clear()

    def _write(self) -> None:
        """The writer thread. One statement per chunk of rows: each step of SQLite gives up and retakes the
        interpreter lock."""
        while (job := self._batches.get()) is not None:
            batch, dead, floor = job
            try:
                for start in range(0, len(batch), _ROWS_PER_STATEMENT):
                    rows = batch[start : start + _ROWS_PER_STATEMENT]
                    values: list[int | str | bytes] = []
                    for event in rows:
                        record = event.record
                        values += (record.revision, record.key, _CODES[event.type], record.value)
                    self._database.execute("INSERT INTO log VALUES " + ",".join(["(?,?,?,?)"] * len(rows)), values)
                if dead:
                    # The floor first: rows may be missing only below a floor that is on disk.
                    self._database.execute("INSERT OR REPLACE INTO log VALUES (0, '', 0, ?)", (str(floor),))
                    self._database.execute(f"DELETE FROM log WHERE rev IN ({','.join(map(str, dead))})")
            except sqlite3.Error as error:
                self._loop.call_soon_threadsafe(self._failed, error)
                return
            self._loop.call_soon_threadsafe(self._committed_batch, batch[-1].revision)


def _superseded_bytes(event: Event) -> int:
    superseded = len(event.previous.value) if event.previous is not None else 0
    return superseded + len(event.record.value) if event.type == "DELETED" else superseded
