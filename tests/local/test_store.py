"""The store: a dictionary with a history, a floor under it, and nothing lost over restarts."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from capstan.local.store import (
    Compacted,
    DataDirectoryInUse,
    Event,
    LogFailed,
    LogUnreadable,
    Store,
    decode,
    table_prefix,
)

PREFIX = "//configmaps/"


def document(text: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": {"text": text}}


def key(name: str, namespace: str = "default") -> str:
    return f"{PREFIX}{namespace}/{name}"


def text_of(value: bytes) -> str:
    return str(decode(value)["data"]["text"])


async def opened(path: Path | None = None, **options: Any) -> Store:
    store = Store(path, **options)
    await store.open()
    return store


def test_a_key_belongs_to_the_table_of_its_resource() -> None:
    assert table_prefix("/apps/deployments/default/web") == "/apps/deployments/"
    assert table_prefix("//nodes//n1") == "//nodes/"


def test_every_write_takes_the_next_revision_and_states_it() -> None:
    async def run() -> None:
        store = await opened()
        first, second = store.put(key("a"), document("1")), store.put(key("b"), document("2"))
        assert (first.revision, second.revision, store.revision) == (1, 2, 2)
        assert decode(second.value)["metadata"]["resourceVersion"] == "2"
        gone = store.delete(key("a"), document("1"))
        assert decode(gone.value)["metadata"]["resourceVersion"] == "3"
        assert store.get(key("a")) is None

    asyncio.run(run())


def test_records_come_in_key_order_and_by_namespace() -> None:
    async def run() -> None:
        store = await opened()
        for namespace, name in (("b", "z"), ("a", "y"), ("a-b", "x"), ("a", "b")):
            store.put(key(name, namespace), document(name))
        table = store.table(PREFIX)
        assert [record.key for record in table.records(f"{PREFIX}a/")] == [key("b", "a"), key("y", "a")]
        assert [record.key for record in table.records(PREFIX, after=key("y", "a"))] == [key("z", "b")]
        assert table.count(f"{PREFIX}a/") == 2

    asyncio.run(run())


def test_watchers_hear_of_a_write_only_after_its_commit(tmp_path: Path) -> None:
    async def run() -> None:
        store = await opened(tmp_path / "state.db")
        heard: list[Event] = []
        store.table(PREFIX).listeners.append(heard.append)
        record = store.put(key("a"), document("1"))
        assert heard == []
        assert store.durable == 0
        await store.committed(record.revision)
        assert [(event.type, event.revision) for event in heard] == [("ADDED", 1)]
        assert store.durable == 1
        await store.close()

    asyncio.run(run())


def test_writes_that_arrive_during_a_commit_form_the_next_batch(tmp_path: Path) -> None:
    async def run() -> None:
        store = await opened(tmp_path / "state.db")
        for number in range(1_200):
            store.put(key(str(number)), document("x"))
        await asyncio.gather(*(store.committed(revision) for revision in (3, 1_200, 700)))
        assert store.durable == 1_200
        await store.close()
        rows = sqlite3.connect(tmp_path / "state.db").execute("SELECT count(*), max(rev) FROM log").fetchone()
        assert rows == (1_200, 1_200)

    asyncio.run(run())


def test_a_list_at_an_older_revision_shows_what_was_then() -> None:
    async def run() -> None:
        store = await opened()
        store.put(key("a"), document("1"))
        store.put(key("b"), document("1"))
        store.put(key("a"), document("2"))
        store.delete(key("b"), document("1"))
        store.put(key("c"), document("1"))
        store.put(key("b"), document("3"))
        table = store.table(PREFIX)

        def at(revision: int, after: str = "") -> dict[str, str]:
            records = store.records_at(table, PREFIX, revision, after)
            return {record.key.rsplit("/", 1)[1]: text_of(record.value) for record in records}

        assert at(1) == {"a": "1"}
        assert at(2) == {"a": "1", "b": "1"}
        assert at(4) == {"a": "2"}
        assert at(6) == {"a": "2", "b": "3", "c": "1"}
        assert at(2, after=key("a")) == {"b": "1"}

    asyncio.run(run())


def test_history_below_the_floor_is_refused() -> None:
    async def run() -> None:
        store = await opened()
        table = store.table(PREFIX)
        for number in range(5):
            store.put(key("a"), document(str(number)))
        assert [event.revision for event in store.events_since(table, 3)] == [4, 5]
        store.compact()
        assert store.floor == 5
        assert store.events_since(table, 5) == []
        with pytest.raises(Compacted, match="revision 4 is no longer kept; the oldest one is 5"):
            store.events_since(table, 4)
        with pytest.raises(Compacted):
            store.records_at(table, PREFIX, 4)

    asyncio.run(run())


def test_the_window_bounds_superseded_bytes_not_live_objects() -> None:
    async def run() -> None:
        store = await opened(window=2_000)
        for number in range(50):
            store.put(key(str(number)), document("x" * 100))
        assert store.floor == 0
        for _ in range(50):
            store.put(key("0"), document("x" * 100))
        assert 0 < store.floor < store.revision

    asyncio.run(run())


def test_compaction_deletes_rows_and_keeps_state_and_floor_over_a_restart(tmp_path: Path) -> None:
    async def run() -> None:
        path = tmp_path / "state.db"
        store = await opened(path, window=4_000)
        for number in range(3_000):
            store.put(key(str(number % 7)), document(str(number)))
        store.delete(key("0"), document("gone"))
        await store.committed(store.revision)
        for _ in range(600):
            store.put(key("1"), document("last"))
            await store.committed(store.revision)
        revision, floor = store.revision, store.floor
        expected = {record.key: record.value for record in store.table(PREFIX).records(PREFIX)}
        await store.close()
        assert sqlite3.connect(path).execute("SELECT count(*) FROM log").fetchone()[0] < 1_500
        again = await opened(path, window=4_000)
        assert again.revision == revision
        assert 0 < again.floor <= floor
        assert {record.key: record.value for record in again.table(PREFIX).records(PREFIX)} == expected
        await again.close()

    asyncio.run(run())


def test_revisions_do_not_start_over_when_everything_was_deleted_and_compacted(tmp_path: Path) -> None:
    async def run() -> None:
        path = tmp_path / "state.db"
        store = await opened(path, window=0)
        for number in range(1_000):
            store.put(key(str(number)), document("x"))
            store.delete(key(str(number)), document("x"))
        await store.committed(store.revision)
        store.put(key("sweep"), document("x"))
        store.delete(key("sweep"), document("x"))
        await store.close()
        again = await opened(path)
        assert again.revision == 2_002
        assert again.table(PREFIX).objects == {}
        await again.close()

    asyncio.run(run())


def test_one_data_directory_has_one_owner(tmp_path: Path) -> None:
    async def run() -> None:
        store = await opened(tmp_path / "state.db")
        with pytest.raises(DataDirectoryInUse, match=f"in use by process {os.getpid()}; stop the other"):
            await opened(tmp_path / "state.db")
        await store.close()
        again = await opened(tmp_path / "state.db")
        await again.close()

    asyncio.run(run())


def test_what_is_no_log_is_named_and_left_alone(tmp_path: Path) -> None:
    async def body() -> None:
        file = tmp_path / "state.db"
        file.write_text("somebody's notes")
        with pytest.raises(LogUnreadable, match=r"state.db cannot be opened: file is not a database"):
            await Store(file).open()
        assert file.read_text() == "somebody's notes"
        file.unlink()
        store = Store(file)
        await store.open()
        await store.close()

    asyncio.run(body())


def test_a_log_that_cannot_be_written_refuses_everything_after(tmp_path: Path) -> None:
    async def run() -> None:
        store = await opened(tmp_path / "state.db")
        store._database.execute("PRAGMA query_only=1")
        record = store.put(key("a"), document("1"))
        with pytest.raises(LogFailed, match="cannot be written"):
            await store.committed(record.revision)
        with pytest.raises(LogFailed):
            store.put(key("b"), document("1"))
        assert store.failed
        await store.close()

    asyncio.run(run())


_WRITER = """
import asyncio, sys
from pathlib import Path
from capstan.local.store import Store

async def main():
    store = Store(Path(sys.argv[1]))
    await store.open()
    async def one(worker):
        number = 0
        while True:
            name = f"//configmaps/default/{worker}"
            record = store.put(name, {"metadata": {}, "number": number})
            await store.committed(record.revision)
            print(worker, number, record.revision, flush=True)
            number += 1
    await asyncio.gather(*(one(worker) for worker in range(8)))

asyncio.run(main())
"""


@pytest.mark.parametrize("lines", [3, 200, 1_500])
def test_nothing_acknowledged_is_lost_by_a_kill(tmp_path: Path, lines: int) -> None:
    path = tmp_path / "state.db"
    process = subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    acknowledged: dict[str, tuple[int, int]] = {}
    for _ in range(lines):
        worker, number, revision = process.stdout.readline().split()
        acknowledged[worker] = (int(number), int(revision))
    process.send_signal(signal.SIGKILL)
    for line in process.stdout:
        if line.endswith("\n"):
            worker, number, revision = line.split()
            acknowledged[worker] = (int(number), int(revision))
    process.wait()
    process.stdout.close()

    async def check() -> None:
        store = await opened(path)
        for worker, (number, revision) in acknowledged.items():
            record = store.get(f"//configmaps/default/{worker}")
            assert record is not None
            assert record.revision >= revision
            assert decode(record.value)["number"] >= number
        assert store.revision >= max(revision for _, revision in acknowledged.values())
        await store.close()

    asyncio.run(check())


class StoreModel(RuleBasedStateMachine):
    """The store against a dictionary per revision, over compactions, restarts and crashes (an unclean end)."""

    keys = st.sampled_from([key("a"), key("b"), key("c", "other"), "/apps/deployments/default/a"])

    @initialize(window=st.sampled_from([0, 300, 100_000]))
    def start(self, window: int) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.loop = asyncio.new_event_loop()
        self.window = window
        self.store = self._open()
        self.model: dict[str, str] = {}
        self.history: list[dict[str, str]] = [{}]
        self.heard: list[tuple[str, str, int]] = []
        self.told = 0
        self._listen()

    def _open(self) -> Store:
        return self.loop.run_until_complete(opened(Path(self.directory.name) / "state.db", window=self.window))

    def _listen(self) -> None:
        for prefix in (PREFIX, "/apps/deployments/"):
            self.store.table(prefix).listeners.append(
                lambda event: self.heard.append((event.type, event.record.key, event.revision))
            )

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.loop.run_until_complete(self.store.close())
            self.loop.close()
            self.directory.cleanup()

    @rule(key=keys, text=st.text(max_size=20))
    def put(self, key: str, text: str) -> None:
        self.store.put(key, document(text))
        self.model = self.model | {key: text}
        self.history.append(self.model)

    @rule(key=keys)
    def delete(self, key: str) -> None:
        if key not in self.model:
            return
        self.store.delete(key, document(self.model[key]))
        self.model = {name: text for name, text in self.model.items() if name != key}
        self.history.append(self.model)

    @rule()
    def commit(self) -> None:
        self.loop.run_until_complete(self.store.committed(self.store.revision))
        assert self.store.durable == self.store.revision
        assert [revision for _, _, revision in self.heard] == list(range(self.told + 1, self.store.revision + 1))

    @precondition(lambda self: self.store.durable == self.store.revision)
    @rule()
    def compact(self) -> None:
        self.store.compact()

    @rule()
    def restart(self) -> None:
        self.loop.run_until_complete(self.store.close())
        self.store = self._open()
        self.heard, self.told = [], self.store.revision
        self._listen()

    @invariant()
    def the_present_is_the_model(self) -> None:
        if not hasattr(self, "store"):
            return
        assert self.store.revision == len(self.history) - 1
        found = {
            record.key: text_of(record.value)
            for prefix in (PREFIX, "/apps/deployments/")
            for record in self.store.table(prefix).records(prefix)
        }
        assert found == self.model
        assert self.store.floor <= self.store.durable <= self.store.revision

    @rule(back=st.integers(0, 6))
    def the_past_is_what_it_was_or_refused(self, back: int) -> None:
        revision = max(0, self.store.revision - back)
        table = self.store.table(PREFIX)
        expected = {name: text for name, text in self.history[revision].items() if name.startswith(PREFIX)}
        if revision < self.store.floor:
            with pytest.raises(Compacted):
                self.store.records_at(table, PREFIX, revision)
            return
        found = {record.key: text_of(record.value) for record in self.store.records_at(table, PREFIX, revision)}
        assert found == expected
        events = self.store.events_since(table, revision)
        replayed = dict(expected)
        for event in events:
            if event.type == "DELETED":
                del replayed[event.record.key]
            else:
                replayed[event.record.key] = text_of(event.record.value)
        durable = {k: v for k, v in self.history[self.store.durable].items() if k.startswith(PREFIX)}
        if revision <= self.store.durable:
            assert replayed == durable


TestStoreModel = StoreModel.TestCase
TestStoreModel.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
