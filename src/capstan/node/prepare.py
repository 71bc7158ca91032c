"""Preparing and unpreparing claims: plan, journal, steps, journal. The one place that writes the ledger.

    prepare    plan ─> ledger: started (fsync) ─> steps ─> ledger: prepared (fsync) ─> answer
    unprepare  steps back, last first ─> ledger: gone (fsync) ─> answer

Both may be repeated at any time. A prepare that fails takes back what it did before it answers; one that was killed is
taken back by `recover` at the next start. Steps that several claims share (a time slice, MIG mode) are taken back with
the last of them. Work on one GPU is serial, on different GPUs parallel. Blocking: call from worker threads.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from capstan.api.resource import ResourceClaim
from capstan.node import cdi
from capstan.node.errors import AlreadyRunning, DeviceBusy, LedgerCorrupt, NodeError
from capstan.node.inventory import Catalog
from capstan.node.ledger import Ledger, quarantine, rebuilt
from capstan.node.nvml import Nvml
from capstan.node.plan import MigState, own_results, plan
from capstan.node.records import Holding, MigInstance, Record, Step, is_adopted, key
from capstan.node.steps import Machine, apply, intact, undo

LEDGER_FILE = "ledger.sqlite3"
LOCK_FILE = "driver.lock"


def _lock(path: Path) -> int:
    """A descriptor that holds the node for this process until it is closed, or the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise AlreadyRunning(f"another driver has {path}", "stop it first") from None
    return descriptor


class Preparer:
    """The prepared claims of one node."""

    def __init__(self, nvml: Nvml, catalog: Callable[[], Catalog], pool: str, plugin_dir: Path, cdi_dir: Path) -> None:
        """`catalog` gives the devices offered now; `pool` is the node's pool name.

        A ledger that cannot be read is put aside and rebuilt from the CDI specs of prepared claims; `quarantined` is
        its new path then. Call `recover` before the first prepare. Raises AlreadyRunning, OSError, sqlite3.Error.
        """
        host = nvml.host()
        self._lock: int | None = _lock(plugin_dir / LOCK_FILE)
        self._pool = pool
        self._catalog = catalog
        self._machine = Machine(nvml, cdi_dir, plugin_dir / "mps", {gpu.uuid: gpu for gpu in host.gpus})
        self._locks: dict[str, threading.Lock] = {}
        self.quarantined: Path | None = None
        path = plugin_dir / LEDGER_FILE
        try:
            self._ledger = Ledger(path)
        except LedgerCorrupt:
            self.quarantined = quarantine(path)
            found = (record for _, record in cdi.recorded(cdi_dir) if record is not None)
            self._ledger = rebuilt(path, found, nvml.boot_id())

    def records(self) -> list[Record]:
        return self._ledger.records()

    def record(self, uid: str) -> Record | None:
        return self._ledger.get(uid)

    def close(self) -> None:
        """Lets the next driver in."""
        self._ledger.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def prepare(self, claim: ResourceClaim, deadline: float) -> Sequence[Holding]:
        """The claim's devices, ready for containers. `deadline` is a time.monotonic() value.

        Raises NodeError (also NvmlError), OSError or sqlite3.Error, and then nothing of the attempt is left.
        """
        catalog = self._catalog()
        offers = (catalog.find(result.device) for result in own_results(claim))
        gpus = {offer.gpu.uuid for offer in offers if offer is not None}
        old = self._ledger.get(claim.metadata.uid)
        with self._locked(sorted(gpus.union(old.gpus if old else ())), deadline):
            return self._prepare(claim, catalog, sorted(gpus)).holdings

    def _prepare(self, claim: ResourceClaim, catalog: Catalog, gpus: Sequence[str]) -> Record:
        old = self._ledger.get(claim.metadata.uid)
        if old is not None:
            if old.state == "prepared" and _same_devices(old, claim):
                return self._heal(old)
            self._take_back(old)
        nvml = self._machine.nvml
        mig = MigState({gpu: nvml.mig_enabled(gpu) for gpu in gpus}, {gpu: list(nvml.mig_devices(gpu)) for gpu in gpus})
        record = plan(claim, self._pool, catalog, mig, self._ledger.records())
        if not record.holdings:
            return record
        if not self._ledger.boot_id:
            self._ledger.set_boot_id(nvml.boot_id())
        self._ledger.put(record)
        try:
            record = self._take(record)
            self._ledger.put(record)
        except BaseException as error:
            try:
                self._take_back(record)
            except (NodeError, OSError) as second:
                raise NodeError(f"{error}; and what was done could not be taken back yet: {second}") from error
            raise
        return record

    def _take(self, record: Record) -> Record:
        for position, step in enumerate(record.steps):
            record = _with_step(record, position, apply(step, record, self._machine))
        return msgspec.structs.replace(record, state="prepared")

    def _heal(self, record: Record) -> Record:
        """Repeated prepare: what somebody has undone meanwhile (a CDI file, a MIG device) is done again."""
        healed = record
        for position, step in enumerate(record.steps):
            if not intact(step, healed, self._machine):
                fresh = msgspec.structs.replace(step, uuid="") if isinstance(step, MigInstance) else step
                healed = _with_step(healed, position, apply(fresh, healed, self._machine))
        if healed != record:
            self._ledger.put(healed)
        return healed

    def unprepare(self, uid: str, deadline: float) -> None:
        """Gives back what the claim holds; a claim that is not prepared is fine. Raises like `prepare`.

        After an error the record stays, the kubelet calls again.
        """
        record = self._ledger.get(uid)
        if record is None:
            return
        with self._locked(record.gpus, deadline):
            current = self._ledger.get(uid)
            if current is not None:
                self._take_back(current)

    def _take_back(self, record: Record) -> None:
        """Undoes every step that no other record has too, last first, then drops the record."""
        others = [other for other in self._ledger.records() if other.uid != record.uid]
        shared = {key(step) for other in others for step in other.steps if not is_adopted(step)}
        for step in reversed(record.steps):
            if key(step) not in shared:
                undo(step, self._machine)
        self._ledger.remove(record.uid)

    def recover(self) -> list[NodeError | OSError]:
        """Takes back what a killed predecessor left half-done, and collects orphaned CDI specs. Safe to repeat.

        After a reboot no record stands: MIG devices, modes and limits are gone, and the kubelet prepares anew. Returns
        the errors of records that could not be taken back now; they stay for the next call.
        """
        rebooted = bool(self._ledger.boot_id) and self._ledger.boot_id != self._machine.nvml.boot_id()
        errors: list[NodeError | OSError] = []
        for record in self._ledger.records():
            if record.state == "started" or rebooted:
                try:
                    with self._locked(record.gpus, time.monotonic() + 45):
                        current = self._ledger.get(record.uid)
                        if current is not None and (current.state == "started" or rebooted):
                            self._take_back(current)
                except (NodeError, OSError) as error:
                    errors.append(error)
        if rebooted and not errors:
            self._ledger.set_boot_id(self._machine.nvml.boot_id())
        for file, found in cdi.recorded(self._machine.cdi_dir):
            if found is None or self._ledger.get(found.uid) is None:
                file.unlink(missing_ok=True)
        return errors

    @contextmanager
    def _locked(self, gpus: Sequence[str], deadline: float) -> Iterator[None]:
        """Locks of GPUs, in the order given (sorted everywhere, so two claims never wait for each other)."""
        with ExitStack() as held:
            for gpu in gpus:
                lock = self._locks.setdefault(gpu, threading.Lock())
                if not lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
                    raise DeviceBusy(f"GPU {gpu} is still being changed for another claim")
                held.callback(lock.release)
            yield


def _with_step(record: Record, position: int, step: Step) -> Record:
    steps = (*record.steps[:position], step, *record.steps[position + 1 :])
    return record if steps == record.steps else msgspec.structs.replace(record, steps=steps)


def _same_devices(record: Record, claim: ResourceClaim) -> bool:
    wanted = [(r.request, r.pool, r.device, r.share_id) for r in own_results(claim)]
    return wanted == [(h.request, h.pool, h.device, h.share_id) for h in record.holdings]
