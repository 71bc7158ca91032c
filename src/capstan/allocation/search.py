"""The search for devices: depth first, complete, with symmetry breaking and bounds, under a step budget.

Requests are satisfied in order, alternatives in the user's order, devices of a request as combinations. `first` takes
candidates in allocation order and ends at the first solution, which is the one kube-scheduler's allocator finds;
`best` takes them by cost and goes on improving while its budget lasts. What prunes never removes the first solution:

- after the first failed branch, of interchangeable devices only one is tried (symmetry.py);
- a state that an interchangeable one has been searched from is not searched from again;
- after a few failed branches, bounds on the requests ahead are checked before each step (lookahead.py).

kube-scheduler's allocator gives up where a selector fails on a device that it looks at, and where a constraint keeps it
from taking all devices of a request for all. `first` does the same, and prunes nothing where that may happen: what is
pruned has no solution, but it may have the failure that is to come first.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple, Protocol

from capstan.allocation.claims import Alternative, Candidate, PreparedClaim, Request, about, cannot_hold
from capstan.allocation.inventory import Inventory
from capstan.allocation.lookahead import hopeful
from capstan.allocation.model import AllocationError, Features, InvalidClaim, Number, SelectorError
from capstan.allocation.pools import Consumption, Device, PoolKey
from capstan.allocation.symmetry import Reader, Symmetry
from capstan.allocation.uses import fits, groups
from capstan.api.resource import MAX_RESULTS

Parts = tuple[tuple[str, int], ...]

LOOK_AHEAD_AFTER = 8
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

    def floor(self, search: Search, index: int, alternative: Alternative, need: int) -> int:
        """What `need` devices of the alternative of the request at `index`, and all requests after it, cost at least,
        whatever else is taken."""

    def ahead(self, search: Search, index: int, alternative: Alternative, need: int) -> int:
        """The same under what is taken, as near as can be told quickly."""

    def symmetry(self, readers: list[Reader]) -> Symmetry:
        """Which devices are interchangeable, costs included. `readers`: what the constraints compare."""


class BudgetExhausted(AllocationError):
    """the search ended after {steps} steps without an answer"""

    def __init__(self, steps: int) -> None:
        super().__init__(f"the search ended after {steps} steps without an answer")
        self.steps = steps


class _Restart(Exception):
    """The search has failed often enough for looking ahead to pay off."""


class Search:
    """One search over the claims of one pod on one node. The inventory is only read."""

    def __init__(
        self,
        inventory: Inventory,
        claims: Sequence[PreparedClaim],
        *,
        budget: int,
        cost: Cost | None = None,
        features: Features | None = None,
    ) -> None:
        self.inventory = inventory
        self.claims = claims
        self.requests = [request for claim in claims for request in claim.requests]
        self.picks: list[Pick] = []
        """The devices taken so far, in order."""
        self.steps = 0
        self.proven = True
        self.selector_error: InvalidClaim | None = None
        """Why `best` has passed over a device."""
        self._budget = budget
        self._limit = budget
        self._cost = cost
        features = features or Features()
        self._groups = features.compatibility_groups
        self._sharing = features.consumable_capacity
        self._sizes = [0] * len(claims)
        self._holders: dict[Device, list[tuple[int, bool]]] = {}
        """(claim, with admin access) of the picks that took a device as a whole."""
        self._shares: dict[Device, list[dict[str, Number]]] = {}
        self._left: dict[tuple[PoolKey, str], dict[str, Number]] = {}
        self._below: dict[PoolKey, bool] = {}
        self._total = 0
        self._best: list[Pick] | None = None
        self._best_total = 0
        self._failures = 0
        self._symmetry: Symmetry | None = None
        self._numbers: dict[Hashable, int] = {}
        self._seen: dict[tuple[int, ...], int] = {}
        self._first = cost is None
        self._plain = self._first and any(option.fatal for request in self.requests for option in request.alternatives)
        """Nothing is pruned."""
        self._any_admin = any(option.admin for request in self.requests for option in request.alternatives)

    def first(self) -> list[Pick] | None:
        """The first solution in allocation order, None if there is none. Raises BudgetExhausted, and InvalidClaim where
        kube-scheduler's allocator would give up."""
        return self.picks if self._run() else None

    def best(self) -> list[Pick] | None:
        """The cheapest solution found, None if there is none at all. Raises BudgetExhausted if none was found in
        time."""
        try:
            self._run()
        except BudgetExhausted:
            if self._best is None:
                raise
            self.proven = False
        return self._best

    def _run(self) -> bool:
        """Most searches never fail. One that does begins again, looking ahead from its very first step."""
        try:
            return self._request(0)
        except _Restart:
            while self.picks:
                self._undo()
            self._sizes = [0] * len(self.claims)
            self._total = 0
            self._seen.clear()
            self._states(self.requests[0])
            return hopeful(None, self.requests, self.possible, self.left) and self._request(0)

    # Branching

    def _request(self, index: int) -> bool:
        if index == len(self.requests):
            return self._complete()
        request = self.requests[index]
        choosing = len(request.alternatives) > 1 or request.alternatives[0].every
        if choosing and self._symmetry is not None and self._seen_before(index, -1, 0, self._states(request)):
            return False
        for position, alternative in enumerate(request.alternatives):
            size = alternative.size
            if not size or self._sizes[request.claim.index] + size > MAX_RESULTS:
                continue
            rank = self._cost.rank(position) if self._cost else 0
            self._total += rank
            self._sizes[request.claim.index] += size
            done = self._all(index, alternative) if alternative.every else self._pick(index, position, size, set())
            if done:
                return True
            self._sizes[request.claim.index] -= size
            self._total -= rank
        return False

    def _complete(self) -> bool:
        if self._cost is None:
            return True
        if self._best is None or self._total < self._best_total:
            if self._best is None:
                self._forget_symmetry()
            self._best, self._best_total = list(self.picks), self._total
            self._limit = min(self._budget, self.steps + IMPROVEMENT_STEPS)
        return False

    def _all(self, index: int, alternative: Alternative) -> bool:
        self._step()
        request, taken = self.requests[index], 0
        wanted = alternative.candidates[: alternative.blocked]
        for candidate in wanted:
            if not self._available(request, alternative, candidate):
                break
            unsuited = next((c for c in alternative.constraints if not c.admits(candidate)), None)
            if unsuited is not None and self._first:
                raise cannot_hold(request.claim.key, alternative, candidate, unsuited)
            if unsuited is not None or not self._has_room(alternative, candidate):
                break
            cost, parts = self._cost.of(self, alternative, candidate) if self._cost else (0, ())
            self._take(Pick(request, alternative, candidate, len(alternative.candidates), cost, parts))
            taken += 1
        if taken == len(wanted) and alternative.blocked is None and self._request(index + 1):
            return True
        for _ in range(taken):
            self._undo()
        return self._fail()

    def _pick(self, index: int, position: int, need: int, banned: set[Device]) -> bool:
        """Takes `need` more devices for the alternative at `position`; `banned` ones are taken or have failed
        already."""
        if not need:
            return self._request(index + 1)
        self._step()
        request = self.requests[index]
        alternative = request.alternatives[position]
        states: dict[int, int] = {}
        if self._symmetry is not None:
            states = self._states(request)
            if self._seen_before(index, position, need, states):
                return False
        if self._best is not None and not self._improves(index, alternative, need):
            return self._fail()
        options = self._options(request, alternative, banned)
        erring = self._first and any(candidate.error for _, candidate, _ in options)
        if not erring and (len(options) < need or not self._hopeful(index, alternative, need, banned)):
            return self._fail()
        excluded: list[Device] = []
        failed: set[tuple[int, int, Device | None]] = set()
        symmetry, done = self._symmetry, False
        floor = self._cost.floor(self, index, alternative, need - 1) if self._cost is not None else 0
        for tried, (cost, candidate, parts) in enumerate(options):
            if len(options) - tried < need and not erring:
                break  # devices are taken in order, so those before are out of the question
            if self._best is not None and self._total + cost + floor >= self._best_total:
                break
            device = candidate.device
            if excluded and not self._plain:
                if symmetry is None or symmetry is not self._symmetry:
                    states, symmetry = self._states(request), self._symmetry
                    failed = {self._kind(other, states) for other in excluded}
                kind = self._kind(device, states)
                if kind in failed:
                    continue
                failed.add(kind)
            banned.add(device)
            excluded.append(device)
            self._take(Pick(request, alternative, candidate, len(options), cost, parts))
            done = self._pick(index, position, need - 1, banned)
            if done:
                break
            self._undo()
        banned.difference_update(excluded)
        return done or self._fail()

    def _improves(self, index: int, alternative: Alternative, need: int) -> bool:
        """Whether a cheaper solution than the best so far may lie ahead."""
        return self._cost is None or self._total + self._cost.ahead(self, index, alternative, need) < self._best_total

    def _step(self) -> None:
        self.steps += 1
        if self.steps > self._limit:
            raise BudgetExhausted(self.steps)

    def _fail(self) -> bool:
        self._failures += 1
        if self._failures == LOOK_AHEAD_AFTER and self._best is None and not self._plain:
            raise _Restart
        return False

    # Symmetry

    def _kind(self, device: Device, states: dict[int, int]) -> tuple[int, int, Device | None]:
        """Equal for two devices only if swapping them changes nothing for the rest of the search."""
        assert self._symmetry is not None
        component = self._symmetry.component[device]
        state = states.get(component, -1 - self._symmetry.kind[component])
        held = device in self._holders or device in self._shares
        return state, self._symmetry.entry[device], device if held else None

    def _states(self, request: Request) -> dict[int, int]:
        """The state of every component that has picks: equal numbers mean the rest of the search sees no difference."""
        symmetry = self._symmetry
        if symmetry is None:
            readers: list[Reader] = [constraint.published for claim in self.claims for constraint in claim.constraints]
            symmetry = self._symmetry = self._symmetry_of(readers)
        picked: dict[int, dict[Device, list[int]]] = {}
        for pick in self.picks:
            device, takes = pick.candidate.device, pick.candidate.takes
            same_claim = pick.request.claim is request.claim
            what = (
                symmetry.entry[device],
                None if takes is None else tuple(takes.items()),
                pick.candidate.drawn,
                frozenset(map(id, pick.alternative.constraints)) if same_claim else None,
                pick.request is request,
                pick.alternative.admin,
                pick.request.claim.index if self._any_admin else None,
            )
            number = self._numbers.setdefault(what, len(self._numbers))
            picked.setdefault(symmetry.component[device], {}).setdefault(device, []).append(number)
        states = {}
        for component, devices in picked.items():
            state = (symmetry.kind[component], *sorted(tuple(sorted(numbers)) for numbers in devices.values()))
            states[component] = self._numbers.setdefault(state, len(self._numbers))
        return states

    def _forget_symmetry(self) -> None:
        """From the first solution on, devices must be alike in cost too to be interchangeable."""
        self._symmetry = None
        self._seen.clear()
        self._numbers.clear()

    def _symmetry_of(self, readers: list[Reader]) -> Symmetry:
        if self._cost is not None and self._best is not None:
            return self._cost.symmetry(readers)
        return Symmetry(self.inventory, self.requests, readers, lambda device: ())

    def _seen_before(self, index: int, position: int, need: int, states: dict[int, int]) -> bool:
        """Whether the search was here at no higher cost: then whatever can be reached from here was reached. Position
        -1 is before an alternative of the request is chosen."""
        state = (index, position, need, *sorted(states.values()))
        known = self._seen.get(state)
        if known is not None and known <= self._total:
            return True
        self._seen[state] = self._total
        return False

    def _hopeful(self, index: int, alternative: Alternative, need: int, banned: set[Device]) -> bool:
        if self._failures < LOOK_AHEAD_AFTER or self._best is not None or self._plain:
            return True
        current = (c for c in alternative.reachable() if c.device not in banned)
        return hopeful(
            (self.requests[index], alternative, need, current), self.requests[index + 1 :], self.possible, self.left
        )

    def _options(
        self, request: Request, alternative: Alternative, banned: set[Device]
    ) -> list[tuple[int, Candidate, Parts]]:
        """Possible candidates in the order to try them."""
        options: list[tuple[int, Candidate, Parts]] = []
        for candidate in alternative.reachable():
            if candidate.device in banned:
                continue
            if candidate.error is not None:
                if not self._first:
                    self.selector_error = self.selector_error or _failure(request, alternative, candidate.error)
                elif not self._held(request, alternative, candidate):
                    options.append((0, candidate, ()))
                continue
            if not self.possible(request, alternative, candidate):
                continue
            cost, parts = self._cost.of(self, alternative, candidate) if self._cost else (0, ())
            options.append((cost, candidate, parts))
        if self._cost is not None:
            options.sort(key=lambda option: option[0])
        return options

    # State

    def possible(self, request: Request, alternative: Alternative, candidate: Candidate) -> bool:
        """Whether the candidate can be taken now, the constraints of its claim included."""
        for constraint in alternative.constraints:
            if not constraint.admits(candidate):
                return False
        return self._available(request, alternative, candidate) and self._has_room(alternative, candidate)

    def _available(self, request: Request, alternative: Alternative, candidate: Candidate) -> bool:
        device = candidate.device
        if self._held(request, alternative, candidate):
            return False
        if alternative.admin or not device.spec.consumes_counters:
            return True
        if device.consumption or candidate.drawn:
            if self._first and self._overdrawn(device) and not self._in_use(device):
                return False
            for name, taken in self._charged(candidate):
                left = self.left(device.pool, name)
                if any(left[counter] < amount for counter, amount in taken):
                    return False
        return not self._groups or self._in_use(device) or self._compatible(device)

    def _held(self, request: Request, alternative: Alternative, candidate: Candidate) -> bool:
        """Whether a pick keeps the device from others."""
        holders = self._holders.get(candidate.device)
        if not holders or (candidate.device.multiple and self._sharing):
            return False
        return self._conflict(holders, request.claim.index, alternative.admin)

    def _conflict(self, holders: list[tuple[int, bool]], claim: int, admin: bool) -> bool:
        """A device is taken once, except that claims with admin access do not keep other claims from it.
        kube-scheduler's allocator lets them, when they come first; `first` does as it does."""
        if admin:
            return any(holder == claim for holder, _ in holders)
        return self._first or any(holder == claim or not by_admin for holder, by_admin in holders)

    def _has_room(self, alternative: Alternative, candidate: Candidate) -> bool:
        """Whether a shared device has what the candidate takes beside the shares of other picks."""
        if alternative.admin or candidate.takes is None or candidate.device not in self._shares:
            return True
        use = self.inventory.use(candidate.device)
        used = dict(use.consumed) if use else {}
        for share in self._shares[candidate.device]:
            for name, amount in share.items():
                used[name] = used.get(name, 0) + amount
        return fits(candidate.device, used, candidate.takes)

    def _overdrawn(self, device: Device) -> bool:
        """Whether a counter of the pool is below zero because a driver shrank a set that is in use. kube-scheduler's
        allocator then takes nothing of the pool that consumes counters."""
        found = self._below.get(device.pool)
        if found is None:
            sets = self.inventory.left(device.pool).values()
            found = self._below[device.pool] = any(amount < 0 for left in sets for amount in left.values())
        return found

    def _in_use(self, device: Device) -> bool:
        """A shared device takes its counters once, however many shares it has."""
        return device in self._shares or (device.multiple and self.inventory.use(device) is not None)

    def _charged(self, candidate: Candidate) -> Consumption:
        """What taking the candidate now takes from counters."""
        device = candidate.device
        return candidate.drawn if self._in_use(device) else (*device.consumption, *candidate.drawn)

    def _compatible(self, device: Device) -> bool:
        """Compatibility groups (KEP-5963): all that is taken from a counter set has one group in common, or none has
        any."""
        held = [other for other, holders in self._holders.items() if not all(by_admin for _, by_admin in holders)]
        members = [groups(other) for other in (*held, *self._shares) if other.pool == device.pool]
        members += [use.groups for use in self.inventory.uses(device.pool).values()]
        for counter_set, common in groups(device):
            rivals = [names for member in members for name, names in member if name == counter_set]
            if rivals and not common.intersection(*rivals) and (common or any(rivals)):
                return False
        return True

    def left(self, pool: PoolKey, name: str) -> dict[str, Number]:
        """Counters of the set that remain under the picks so far."""
        left = self._left.get((pool, name))
        return self.inventory.left(pool)[name] if left is None else left

    def shares(self, device: Device) -> list[dict[str, Number]]:
        """What picks of this search take of a shared device."""
        return self._shares.get(device, [])

    def _take(self, pick: Pick) -> None:
        candidate, alternative = pick.candidate, pick.alternative
        device = candidate.device
        if candidate.error is not None:
            raise _failure(pick.request, alternative, candidate.error)
        if not alternative.admin and (device.consumption or candidate.drawn):
            self._charge(device.pool, self._charged(candidate), 1)
        if candidate.takes is None or alternative.admin:
            self._holders.setdefault(device, []).append((pick.request.claim.index, alternative.admin))
        else:
            self._shares.setdefault(device, []).append(candidate.takes)
        for constraint in alternative.constraints:
            constraint.add(candidate)
        self._total += pick.cost
        self.picks.append(pick)

    def _undo(self) -> None:
        pick = self.picks.pop()
        candidate, alternative = pick.candidate, pick.alternative
        device = candidate.device
        self._total -= pick.cost
        for constraint in alternative.constraints:
            constraint.remove()
        held = self._holders if candidate.takes is None or alternative.admin else self._shares
        held[device].pop()
        if not held[device]:
            del held[device]
        if not alternative.admin and (device.consumption or candidate.drawn):
            self._charge(device.pool, self._charged(candidate), -1)

    def _charge(self, pool: PoolKey, consumption: Consumption, sign: int) -> None:
        for name, taken in consumption:
            key = (pool, name)
            left = self._left.get(key)
            if left is None:
                left = self._left[key] = dict(self.inventory.left(pool)[name])
            for counter, amount in taken:
                left[counter] -= sign * amount


def _failure(request: Request, alternative: Alternative, error: SelectorError) -> InvalidClaim:
    key = request.claim.key
    return InvalidClaim(error.reason, about(key, alternative.name, str(error)), key, alternative.name)
