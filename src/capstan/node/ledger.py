"""The journal of prepared claims: a small SQLite file per node, written before the side effects it announces.

A record is on disk (`synchronous=FULL`: fsync) as `started` before the first step of a prepare, as `prepared` before
the kubelet hears of success, and gone only after the last step back. So a driver that is killed anywhere finds out at
its next start what may be half-done. The file is opened when the first claim comes: an idle node has none.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable
from pathlib import Path

import msgspec

from capstan.node.errors import LedgerCorrupt
from capstan.node.records import Record

_SCHEMA = """
CREATE TABLE IF NOT EXISTS claims (uid TEXT PRIMARY KEY, record BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
_BOOT_ID = "boot-id"
_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(Record)


class Ledger:
    """The records by claim UID. Reads come from memory, writes go to disk first. Safe to use from any thread."""

    def __init__(self, path: Path) -> None:
        """Raises LedgerCorrupt when there is a file that cannot be read; see `quarantine`."""
        self._path = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._records: dict[str, Record] = {}
        self.boot_id = ""
        """The boot during which the records were written; empty for a new ledger."""
        if path.exists():
            self._read()

    def _read(self) -> None:
        try:
            connection = self._open()
            verdict = connection.execute("PRAGMA quick_check").fetchone()[0]
            if verdict != "ok":
                raise LedgerCorrupt(f"ledger {self._path}: {verdict}")
            for (blob,) in connection.execute("SELECT record FROM claims ORDER BY rowid"):
                record = _decoder.decode(blob)
                self._records[record.uid] = record
            row = connection.execute("SELECT value FROM meta WHERE key = ?", (_BOOT_ID,)).fetchone()
            self.boot_id = row[0] if row else ""
        except (sqlite3.DatabaseError, msgspec.DecodeError) as error:
            self.close()
            raise LedgerCorrupt(f"ledger {self._path}: {error}") from error
        except LedgerCorrupt:
            self.close()
            raise

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
            self._connection = connection
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA cache_size=-64")
            connection.executescript(_SCHEMA)
        return self._connection

    def records(self) -> list[Record]:
        with self._lock:
            return list(self._records.values())

    def get(self, uid: str) -> Record | None:
        return self._records.get(uid)

    def put(self, record: Record) -> None:
        """Returns when the record is on disk."""
        with self._lock:
            self._open().execute(
                "INSERT INTO claims VALUES (?, ?) ON CONFLICT (uid) DO UPDATE SET record = excluded.record",
                (record.uid, _encode(record)),
            )
            self._records[record.uid] = record

    def remove(self, uid: str) -> None:
        with self._lock:
            if uid in self._records:
                self._open().execute("DELETE FROM claims WHERE uid = ?", (uid,))
                del self._records[uid]

    def set_boot_id(self, boot_id: str) -> None:
        with self._lock:
            self._open().execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (_BOOT_ID, boot_id))
            self.boot_id = boot_id

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def quarantine(path: Path) -> Path:
    """Puts a corrupt ledger aside, with its log, under the first free name `<name>.corrupt-<n>`, and says which."""
    number = 0
    while (aside := path.with_name(f"{path.name}.corrupt-{number}")).exists():
        number += 1
    for suffix in ("-wal", "-shm"):
        companion = path.with_name(path.name + suffix)
        if companion.exists():
            companion.rename(aside.with_name(aside.name + suffix))
    path.rename(aside)
    return aside


def rebuilt(path: Path, records: Iterable[Record], boot_id: str) -> Ledger:
    """A new ledger with records that were found elsewhere (in the CDI specs of prepared claims)."""
    ledger = Ledger(path)
    ledger.set_boot_id(boot_id)
    for record in records:
        ledger.put(record)
    return ledger
