"""Who holds what: the allocations of all claims, and what they take together of devices and counters.

What the API server says comes in through `observe`, decisions that it does not know yet through `assume` and `release`.
Those are journaled, so that a simulation can be rolled back. Allocation truth is what claims say, never what slices say
(KEP-4381).
"""

from __future__ import annotations

from collections.abc import Callable

from capstan.allocation.model import ClaimKey, Number, StaleMark
from capstan.allocation.pools import Device, Pool, PoolKey
from capstan.allocation.uses import Use, charge, charges, counted, groups
from capstan.api.resource import AllocationResult, DeviceRequestAllocationResult

_Entry = tuple[PoolKey, str, Use | None] | tuple[ClaimKey, AllocationResult | None, bool]


class Holdings:
    """`pool_of` gives an assembled pool, and has called `recount` with it since it was assembled last. `changed` is
    told of every use that changes: the pool, and whether something of it may have become free."""

    def __init__(self, pool_of: Callable[[PoolKey], Pool | None], changed: Callable[[PoolKey, bool], None]) -> None:
        self.uses: dict[PoolKey, dict[str, Use]] = {}
        """By device name, vanished devices included. To be read only."""
        self._pool_of = pool_of
        self._changed = changed
        self._observed: dict[ClaimKey, AllocationResult] = {}
        self._assumed: dict[ClaimKey, AllocationResult | None] = {}
        self._left: dict[PoolKey, dict[str, dict[str, Number]]] = {}
        self._journal: list[_Entry] = []
        self._epoch = 0

    # Facts

    def observe(self, key: ClaimKey, allocation: AllocationResult | None) -> None:
        """What the API server says a claim holds. An assumed allocation outlasts a claim that has none yet."""
        if allocation is None and self._assumed.get(key) is not None:
            return
        if allocation is None or allocation != self.allocation(key):  # mostly it is what was decided here
            self._hold(key, allocation)
        self._assumed.pop(key, None)
        if allocation is None:
            self._observed.pop(key, None)
        else:
            self._observed[key] = allocation

    def forget(self, key: ClaimKey) -> None:
        """The claim is gone, and whatever was assumed of it."""
        self._hold(key, None)
        self._observed.pop(key, None)
        self._assumed.pop(key, None)

    def settle(self) -> None:
        """Facts cannot be rolled back: what was journaled before one stays."""
        self._epoch += len(self._journal) + 1
        self._journal.clear()

    def recount(self, pool: Pool) -> None:
        """Counters that remain after a pool was assembled. A device still there takes what it says now, a vanished one
        what it took; allocations that say what they took are believed."""
        left = {name: dict(counters) for name, counters in pool.counters.items()}
        uses = self.uses.get(pool.key, {})
        for name, use in uses.items():
            device = pool.devices.get(name)
            taken = charges(device, use)
            if taken != use.consumption:
                kept = use.groups if device is None else groups(device)
                use = uses[name] = use._replace(consumption=taken, groups=kept)
            charge(left, use.consumption, 1)
        self._left[pool.key] = left

    def drop(self, pool: PoolKey) -> None:
        """The pool is gone. Claims may still hold devices of it."""
        self._left.pop(pool, None)

    # Decisions

    def assume(self, key: ClaimKey, allocation: AllocationResult) -> None:
        """Counts an allocation that is decided but not yet in the API server. Replaces what the claim held."""
        self._decide(key, allocation)

    def release(self, key: ClaimKey) -> None:
        """Forgets what the claim holds: takes back an assumption, or assumes that an observed allocation ends."""
        if key in self._assumed and self._assumed[key] is not None and key not in self._observed:
            self._decide(key, None, forget=True)
        elif self.allocation(key) is not None:
            self._decide(key, None)

    def mark(self) -> int:
        """A point to roll back to, valid until the next fact."""
        return self._epoch + len(self._journal)

    def rollback(self, mark: int) -> None:
        """Undoes every assume and release since `mark`. Raises StaleMark if facts arrived since."""
        position = mark - self._epoch
        if not 0 <= position <= len(self._journal):
            raise StaleMark(mark)
        while len(self._journal) > position:
            self._undo(self._journal.pop())

    def allocation(self, key: ClaimKey) -> AllocationResult | None:
        """What the claim holds, as far as is known."""
        return self._assumed[key] if key in self._assumed else self._observed.get(key)

    def _decide(self, key: ClaimKey, allocation: AllocationResult | None, *, forget: bool = False) -> None:
        before, known = self._assumed.get(key), key in self._assumed
        self._hold(key, allocation)
        if forget:
            del self._assumed[key]
        else:
            self._assumed[key] = allocation
        self._journal.append((key, before, known))

    def _undo(self, entry: _Entry) -> None:
        key, second, third = entry
        if isinstance(second, str):
            self._set_use(key, second, third)  # type: ignore[arg-type]
        elif third:
            self._assumed[key] = second
        else:
            self._assumed.pop(key, None)

    # Uses

    def _hold(self, key: ClaimKey, allocation: AllocationResult | None) -> None:
        before = self.allocation(key)
        if before is not None:
            for result in before.devices.results:
                self._give_back(result)
        if allocation is not None:
            for result in allocation.devices.results:
                self._take(result)

    def _take(self, result: DeviceRequestAllocationResult) -> None:
        if result.admin_access:
            return
        pool_key = (result.driver, result.pool)
        pool = self._pool_of(pool_key)
        device = pool.devices.get(result.device) if pool else None
        use = self.uses.get(pool_key, {}).get(result.device) or Use(
            0, 0, {}, device.consumption if device else (), groups(device) if device else ()
        )
        use = counted(use, result, 1)
        self._change_use(pool_key, result.device, use._replace(consumption=charges(device, use)))

    def _give_back(self, result: DeviceRequestAllocationResult) -> None:
        if result.admin_access:
            return
        pool_key = (result.driver, result.pool)
        pool = self._pool_of(pool_key)
        device = pool.devices.get(result.device) if pool else None
        use = counted(self.uses[pool_key][result.device], result, -1)
        use = use._replace(consumption=charges(device, use))
        self._change_use(pool_key, result.device, use if use.whole or use.shares else None)

    def _change_use(self, key: PoolKey, device: str, use: Use | None) -> None:
        self._journal.append((key, device, self.uses.get(key, {}).get(device)))
        self._set_use(key, device, use)

    def _set_use(self, key: PoolKey, device: str, use: Use | None) -> None:
        uses = self.uses.setdefault(key, {})
        before = uses.pop(device, None)
        left = self._left.get(key)
        if before is not None and left is not None:
            charge(left, before.consumption, -1)
        if use is not None:
            uses[device] = use
            if left is not None:
                charge(left, use.consumption, 1)
        if not uses:
            del self.uses[key]
        freed = before is not None and (use is None or use.whole + use.shares <= before.whole + before.shares)
        self._changed(key, freed)

    # Questions

    def use(self, device: Device) -> Use | None:
        uses = self.uses.get(device.pool)
        return uses.get(device.name) if uses else None

    def left(self, pool: PoolKey) -> dict[str, dict[str, Number]]:
        """Remaining counters of each set; below zero if a driver shrank a set that is in use."""
        return self._left[pool]

    def dump(self) -> dict[str, object]:
        """Everything that decisions change, in canonical order: equal dumps mean equal states."""
        return {
            "assumed": sorted(self._assumed.items(), key=lambda item: item[0]),
            "observed": sorted(self._observed.items()),
            "uses": sorted((key, sorted(uses.items())) for key, uses in self.uses.items()),
            "left": sorted(
                (key, sorted((n, sorted(c.items())) for n, c in left.items())) for key, left in self._left.items()
            ),
        }
