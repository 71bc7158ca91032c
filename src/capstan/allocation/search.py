"""The search for devices: depth first, complete, with symmetry breaking and bounds, under a step budget.

Requests are satisfied in order, alternatives in the user's order, devices of a request as combinations. `first` takes
candidates in allocation order and ends at the first solution, which is the one kube-scheduler's allocator finds;
`best` takes them by cost and goes on improving while its budget lasts. What prunes never removes the first solution:

- a device that failed is not tried again within the request, nor is any device of its symmetry class;
- once a branch has failed, every request ahead must still have enough candidates, distinct devices (a bipartite
  matching) and counters before a branch is entered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from capstan.allocation.claims import Alternative, Candidate, PreparedClaim, Request
from capstan.allocation.constraints import DistinctAttribute
from capstan.allocation.inventory import Inventory, fits
from capstan.allocation.model import AllocationError, Number
from capstan.allocation.pools import Device, Pool
from capstan.allocation.symmetry import Symmetry
from capstan.api.resource import MAX_RESULTS

Parts = tuple[tuple[str, int], ...]

PROPAGATE_AFTER = 8
"""Failed branches before looking ahead pays off: most searches never fail at all."""

IMPROVEMENT_STEPS = 128
"""Steps that `best` spends on improving its first solution."""


class Pick(NamedTuple):
    request: Request
    alternative: Alternative
    candidate: Candidate
    options: int
    """How many candidates were possible when this one was taken."""
    cost: int
    parts: Parts


class Cost(Protocol):
    """What `best` minimises. Costs are never negative and add up."""

    def of(self, search: Search, alternative: Alternative, candidate: Candidate) -> tuple[int, Parts]: ...

    def rank(self, position: int) -> int:
        """The cost of using the alternative at this position of a request."""

    def floor(self, alternative: Alternative) -> int:
        """What one device of the alternative costs at least."""

    def traits(self, device: Device) -> tuple[object, ...]:
        """What else makes two devices cost differently."""


class BudgetExhausted(AllocationError):
    """the search ended after {steps} steps without an answer"""

    def __init__(self, steps: int) -> None:
        super().__init__(f"the search ended after {steps} steps without an answer")
        self.steps = steps


class Search:
    """One search over the claims of one pod on one node. The inventory is only read."""

    def __init__(
        self,
        inventory: Inventory,
        claims: Sequence[PreparedClaim],
        *,
        budget: int,
        cost: Cost | None = None,
        compatibility_groups: bool = False,
    ) -> None:
        self.inventory = inventory
        self.claims = claims
        self.requests = [request for claim in claims for request in claim.requests]
        self.picks: list[Pick] = []
        """The devices taken so far, in order."""
        self.steps = 0
        self.proven = True
        self.selector_error: AllocationError | None = None
        self._budget = budget
        self._limit = budget
        self._cost = cost
        self._groups = compatibility_groups
        self._sizes = [0] * len(claims)
        self._holders: dict[Device, list[tuple[int, bool]]] = {}
        """(claim, with admin access) of the picks that took a device as a whole."""
        self._shares: dict[Device, list[dict[str, Number]]] = {}
        self._left: dict[tuple[Pool, str], dict[str, Number]] = {}
        self._total = 0
        self._best: list[Pick] | None = None
        self._best_total = 0
        self._failures = 0
        self._symmetry: Symmetry | None = None

    def first(self) -> list[Pick] | None:
        """The first solution in allocation order, None if there is none. Raises BudgetExhausted and a selector's
        failure."""
        return self.picks if self._request(0) else None

    def best(self) -> list[Pick] | None:
        """The cheapest solution found, None if there is none at all. Raises BudgetExhausted if none was found in
        time."""
        try:
            self._request(0)
        except BudgetExhausted:
            if self._best is None:
                raise
            self.proven = False
        return self._best

    # Branching

    def _request(self, index: int) -> bool:
        if index == len(self.requests):
            return self._complete()
        request = self.requests[index]
        for position, alternative in enumerate(request.alternatives):
            size = len(alternative.candidates) if alternative.every else alternative.count
            if alternative.unsatisfiable or not size or self._sizes[request.claim.index] + size > MAX_RESULTS:
                continue
            rank = self._cost.rank(position) if self._cost else 0
            self._total += rank
            self._sizes[request.claim.index] += size
            done = self._all(index, alternative) if alternative.every else self._pick(index, alternative, size, set())
            if done:
                return True
            self._sizes[request.claim.index] -= size
            self._total -= rank
        return False

    def _complete(self) -> bool:
        if self._cost is None:
            return True
        if self._best is None or self._total < self._best_total:
            self._best, self._best_total = list(self.picks), self._total
            self._limit = min(self._budget, self.steps + IMPROVEMENT_STEPS)
        return False

    def _all(self, index: int, alternative: Alternative) -> bool:
        request, taken = self.requests[index], 0
        for candidate in alternative.candidates:
            if not self.possible(request, alternative, candidate):
                break
            cost, parts = self._cost.of(self, alternative, candidate) if self._cost else (0, ())
            self._take(Pick(request, alternative, candidate, len(alternative.candidates), cost, parts))
            taken += 1
        if taken == len(alternative.candidates) and self._request(index + 1):
            return True
        for _ in range(taken):
            self._undo()
        return False

    def _pick(self, index: int, alternative: Alternative, need: int, banned: set[object]) -> bool:
        if not need:
            return self._request(index + 1)
        self.steps += 1
        if self.steps > self._limit:
            raise BudgetExhausted(self.steps)
        request = self.requests[index]
        options = self._options(request, alternative, banned)
        if len(options) < need:
            return self._fail()
        if self._failures >= PROPAGATE_AFTER and not self._feasible_ahead(index, alternative, need, banned):
            return self._fail()
        excluded: list[object] = []
        done, failed = False, None
        for cost, candidate, parts in options:
            floor = self._total + cost + self._floor(index, alternative, need - 1) if self._best is not None else 0
            if self._best is not None and floor >= self._best_total:
                break
            if failed is not None:
                self._ban(self._kind(failed), banned, excluded)
            if self._symmetry is not None and self._kind(candidate.device) in banned:
                continue
            failed = candidate.device
            self._ban(failed, banned, excluded)
            self._take(Pick(request, alternative, candidate, len(options), cost, parts))
            if self._pick(index, alternative, need - 1, banned):
                done = True
                break
            self._undo()
        banned.difference_update(excluded)
        return done or (self._fail() if self._best is None else False)

    @staticmethod
    def _ban(kind: object, banned: set[object], excluded: list[object]) -> None:
        if kind not in banned:
            banned.add(kind)
            excluded.append(kind)

    def _fail(self) -> bool:
        self._failures += 1
        return False

    def _options(
        self, request: Request, alternative: Alternative, banned: set[object]
    ) -> list[tuple[int, Candidate, Parts]]:
        """Possible candidates in the order to try them."""
        options: list[tuple[int, Candidate, Parts]] = []
        for candidate in alternative.candidates:
            if candidate.device in banned or not self.possible(request, alternative, candidate):
                continue
            if candidate.error is not None:
                self.selector_error = candidate.error
                if self._cost is None:
                    options.append((0, candidate, ()))
                continue
            cost, parts = self._cost.of(self, alternative, candidate) if self._cost else (0, ())
            options.append((cost, candidate, parts))
        if self._cost is not None:
            options.sort(key=lambda option: option[0])
        return options

    def _floor(self, index: int, alternative: Alternative, need: int) -> int:
        """What the rest of the search costs at least."""
        assert self._cost is not None
        total = need * self._cost.floor(alternative)
        for request in self.requests[index + 1 :]:
            total += min(
                (0 if option.every else option.count * self._cost.floor(option) for option in request.alternatives),
                default=0,
            )
        return total

    def _kind(self, device: Device) -> object:
        if self._symmetry is None:
            traits = self._cost.traits if self._cost else None
            self._symmetry = Symmetry(self.inventory, self.requests, traits)
        return self._symmetry.kind(device, self._touched)

    def _touched(self, device: Device) -> bool:
        return device in self._holders or device in self._shares

    # State

    def possible(self, request: Request, alternative: Alternative, candidate: Candidate) -> bool:
        """Whether the candidate can be taken now, the constraints of its claim included."""
        device, claim = candidate.device, request.claim.index
        if candidate.takes is None:
            holders = self._holders.get(device)
            if holders and self._conflict(holders, claim, alternative.admin):
                return False
        elif device in self._shares and not self._has_room(candidate):
            return False
        if device.consumption and not alternative.admin and not self._in_use(device):
            for name, taken in device.consumption:
                left = self.left(device.pool, name)
                for counter, amount in taken:
                    if left[counter] < amount:
                        return False
            if self._groups and not self._compatible(device):
                return False
        return all(constraint.admits(device) for constraint in alternative.constraints)

    def _conflict(self, holders: list[tuple[int, bool]], claim: int, admin: bool) -> bool:
        """A device is taken once, except that claims with admin access do not keep other claims from it.
        kube-scheduler's allocator lets them, when they come first; `first` does as it does."""
        if admin:
            return any(holder == claim for holder, _ in holders)
        return self._cost is None or any(holder == claim or not by_admin for holder, by_admin in holders)

    def _has_room(self, candidate: Candidate) -> bool:
        use = self.inventory.use(candidate.device)
        used = dict(use.consumed) if use else {}
        for share in self._shares[candidate.device]:
            for name, amount in share.items():
                used[name] = used.get(name, 0) + amount
        assert candidate.takes is not None
        return fits(candidate.device, used, candidate.takes)

    def _in_use(self, device: Device) -> bool:
        """A shared device takes its counters once, however many shares it has."""
        return device in self._shares or (device.multiple and self.inventory.use(device) is not None)

    def _compatible(self, device: Device) -> bool:
        """Compatibility groups (KEP-5963): everything taken from a counter set shares a group pairwise; none only
        with none."""
        others = [
            held.spec for held in (*self._holders, *self._shares) if held.pool is device.pool and held.consumption
        ]
        for taken in device.spec.consumes_counters:
            own = taken.compatibility_groups
            rivals = [
                taken_too.compatibility_groups
                for other in others
                for taken_too in other.consumes_counters
                if taken_too.counter_set == taken.counter_set
            ]
            for use in self.inventory.uses(device.pool).values():
                rivals += [
                    None if groups is None else sorted(groups)
                    for name, groups in use.groups
                    if name == taken.counter_set
                ]
            for rival in rivals:
                if (own is None) != (rival is None) or (
                    own is not None and rival is not None and not set(own) & set(rival)
                ):
                    return False
        return True

    def left(self, pool: Pool, name: str) -> dict[str, Number]:
        """Counters of the set that remain under the picks so far."""
        left = self._left.get((pool, name))
        return self.inventory.left(pool)[name] if left is None else left

    def shares(self, device: Device) -> list[dict[str, Number]]:
        """What picks of this search take of a shared device."""
        return self._shares.get(device, [])

    def _take(self, pick: Pick) -> None:
        candidate, alternative = pick.candidate, pick.alternative
        if candidate.error is not None:
            raise candidate.error
        device = candidate.device
        if not alternative.admin and device.consumption and not self._in_use(device):
            self._charge(device, 1)
        if candidate.takes is None:
            self._holders.setdefault(device, []).append((pick.request.claim.index, alternative.admin))
        else:
            self._shares.setdefault(device, []).append(candidate.takes)
        for constraint in alternative.constraints:
            constraint.add(device)
        self._total += pick.cost
        self.picks.append(pick)

    def _undo(self) -> None:
        pick = self.picks.pop()
        candidate, alternative = pick.candidate, pick.alternative
        device = candidate.device
        self._total -= pick.cost
        for constraint in alternative.constraints:
            constraint.remove()
        held = self._holders if candidate.takes is None else self._shares
        held[device].pop()
        if not held[device]:
            del held[device]
        if not alternative.admin and device.consumption and not self._in_use(device):
            self._charge(device, -1)

    def _charge(self, device: Device, sign: int) -> None:
        for name, taken in device.consumption:
            key = (device.pool, name)
            left = self._left.get(key)
            if left is None:
                left = self._left[key] = dict(self.inventory.left(device.pool)[name])
            for counter, amount in taken:
                left[counter] -= sign * amount

    # Looking ahead

    def _feasible_ahead(self, index: int, alternative: Alternative, need: int, banned: set[object]) -> bool:
        """Whether the rest may still be satisfied, by bounds that never say no wrongly."""
        slots: list[tuple[int, list[Device]]] = []
        scarce: dict[str, Number] = {}
        current = [c for c in alternative.candidates if c.device not in banned]
        if not self._reserve(self.requests[index], [(alternative, need, current)], slots, scarce):
            return False
        for request in self.requests[index + 1 :]:
            ways = [(option, option.count, option.candidates) for option in request.alternatives]
            if not self._reserve(request, ways, slots, scarce):
                return False
        return self._counters_suffice(scarce) and _matching(slots)

    def _reserve(
        self,
        request: Request,
        ways: list[tuple[Alternative, int, list[Candidate]]],
        slots: list[tuple[int, list[Device]]],
        scarce: dict[str, Number],
    ) -> bool:
        """Notes what the request needs whichever way it is satisfied; False if no way is left."""
        least, exclusive = 0, True
        devices: dict[Device, None] = {}
        demand: dict[str, Number] | None = None
        for option, count, candidates in ways:
            if option.unsatisfiable:
                continue
            open_ = [c for c in candidates if self.possible(request, option, c)]
            if option.every:
                if len(open_) < len(option.candidates) or not open_:
                    continue
                return True
            if len(open_) < count or not _distinct(option, open_, count):
                continue
            least = min(least, count) if devices else count
            devices.update(dict.fromkeys(c.device for c in open_))
            exclusive = exclusive and not option.admin and all(c.takes is None for c in open_)
            needs = _least_counters(open_, count) if not option.admin else {}
            if demand is None:
                demand = needs
            else:
                demand = {name: min(amount, needs.get(name, 0)) for name, amount in demand.items()}
        if demand is None:
            return False
        for name, amount in demand.items():
            scarce[name] = scarce.get(name, 0) + amount
        if exclusive:
            slots.append((least, list(devices)))
        return True

    def _counters_suffice(self, scarce: dict[str, Number]) -> bool:
        if not scarce:
            return True
        available: dict[str, Number] = {}
        seen: set[tuple[Pool, str]] = set()
        for request in self.requests:
            for option in request.alternatives:
                for candidate in option.candidates:
                    for name, _ in candidate.device.consumption:
                        key = (candidate.device.pool, name)
                        if key not in seen:
                            seen.add(key)
                            for counter, amount in self.left(*key).items():
                                available[counter] = available.get(counter, 0) + max(0, amount)
        return all(available.get(name, 0) >= amount for name, amount in scarce.items())


def _distinct(option: Alternative, candidates: list[Candidate], count: int) -> bool:
    """Whether as many different values as devices are left, for every constraint that wants them different."""
    return all(
        len({constraint.values(candidate.device) for candidate in candidates}) >= count
        for constraint in option.constraints
        if isinstance(constraint, DistinctAttribute)
    )


def _least_counters(candidates: list[Candidate], count: int) -> dict[str, Number]:
    """What any `count` of the candidates take at least, per counter name; shared devices may take nothing more."""
    least: dict[str, Number] | None = None
    for candidate in candidates:
        if candidate.takes is not None or not candidate.device.consumption:
            return {}
        takes: dict[str, Number] = {}
        for _, taken in candidate.device.consumption:
            for counter, amount in taken:
                takes[counter] = takes.get(counter, 0) + amount
        least = takes if least is None else {n: min(a, takes[n]) for n, a in least.items() if n in takes}
    return {name: amount * count for name, amount in (least or {}).items()}


def _matching(slots: list[tuple[int, list[Device]]]) -> bool:
    """Whether every slot can get its number of devices with no device used twice (augmenting paths)."""
    owner: dict[Device, int] = {}

    def augment(slot: int, seen: set[Device]) -> bool:
        for device in slots[slot][1]:
            if device not in seen:
                seen.add(device)
                holder = owner.get(device)
                if holder is None or augment(holder, seen):
                    owner[device] = slot
                    return True
        return False

    return all(
        augment(slot, set())
        for slot in sorted(range(len(slots)), key=lambda s: len(slots[s][1]))
        for _ in range(slots[slot][0])
    )
