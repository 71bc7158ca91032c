"""kube-scheduler's structured allocator, written down plainly, to compare the policy `kubernetes` with.

It works on objects as Kubernetes writes them (dicts) and shares no code with Capstan. There is no state to undo: what
is taken is a tuple of picks, and every rule is evaluated on it from the beginning. Slow, and meant to be checked by
reading. Source: the published algorithm of k8s.io/dynamic-resource-allocation/structured (1.36 and 1.37).

Counters beside devices in one slice are read as 1.34 reads them; later versions ignore the devices.

Where that allocator is known to be wrong, the rule here is the corrected one: admin access takes nothing and is
refused nothing (kubernetes #140729), a shared device whose share names no capacity holds its counters (#140433), and
all devices under distinctAttribute are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

Object = Mapping[str, Any]
MAX_RESULTS = 32
GATES = frozenset(
    (
        "DRAAdminAccess",
        "DRAPrioritizedList",
        "DRAPartitionableDevices",
        "DRADeviceTaints",
        "DRADeviceBindingConditions",
        "DRAConsumableCapacity",
    )
)


class Failure(Exception):
    """The allocator gives up with an error: nothing that another device could mend."""


class TooLarge(Exception):
    """The claim would get more than 32 devices on this branch."""


@dataclass(frozen=True)
class Offer:
    """A device in its slice."""

    slice: Object
    device: Object

    @property
    def driver(self) -> str:
        return str(self.slice["spec"]["driver"])

    @property
    def id(self) -> tuple[str, str, str]:
        return (self.driver, self.slice["spec"]["pool"]["name"], self.device["name"])

    @property
    def place(self) -> Object:
        """What says which nodes see the device."""
        spec = self.slice["spec"]
        return self.device if spec.get("perDeviceNodeSelection") else spec  # type: ignore[no-any-return]


@dataclass
class Pool:
    name: tuple[str, str]
    offers: list[Offer] = field(default_factory=list)
    """Of the slices that the node sees, in the order in which they are tried."""
    elsewhere: list[Offer] = field(default_factory=list)
    counters: dict[str, Object] = field(default_factory=dict)
    incomplete: bool = False
    invalid: bool = False


@dataclass(frozen=True)
class Pick:
    claim: int
    request: int
    name: str
    base: str
    spec: Object
    offer: Offer
    takes: Mapping[str, Fraction] | None
    """Capacity consumed; None unless the device allows multiple allocations."""

    @property
    def admin(self) -> bool:
        return bool(self.spec.get("adminAccess"))


Evaluate = Callable[[str, str, Object], Any]
"""Evaluates a CEL expression on a device of a driver. Raises Failure."""


@dataclass
class Allocator:
    node: str
    labels: Mapping[str, str]
    slices: Sequence[Object]
    classes: Mapping[str, Object]
    held: Sequence[Object]
    """Results of allocated claims."""
    evaluate: Evaluate
    gates: frozenset[str] = GATES

    # -- pools

    def __post_init__(self) -> None:
        self.whole = {_id(r) for r in self.held if not r.get("adminAccess") and not self._share(r)}
        self.shared: dict[tuple[str, str, str], dict[str, Fraction]] = {}
        for result in self.held:
            if not result.get("adminAccess") and self._share(result):
                used = self.shared.setdefault(_id(result), {})
                for name, amount in result.get("consumedCapacity", {}).items():
                    used[name] = used.get(name, Fraction(0)) + Fraction(amount)
        self.pools = list(self._gather())

    def _share(self, result: Object) -> bool:
        return "DRAConsumableCapacity" in self.gates and "shareID" in result

    def _gather(self) -> Iterator[Pool]:
        """Pools by driver and name, those with devices that have binding conditions last."""
        seen: dict[tuple[str, str], list[Object]] = {}
        everything: dict[tuple[str, str], list[Object]] = {}
        for entry in self.slices:
            name = (entry["spec"]["driver"], entry["spec"]["pool"]["name"])
            everything.setdefault(name, []).append(entry)
            if self._relevant(entry["spec"]):
                seen.setdefault(name, []).append(entry)
        pools = [self._pool(name, entries, everything[name]) for name, entries in seen.items()]
        found = [pool for pool in pools if pool is not None]
        return iter(sorted(found, key=lambda p: (any(o.device.get("bindingConditions") for o in p.offers), p.name)))

    def _relevant(self, spec: Object) -> bool:
        if "DRAPartitionableDevices" not in self.gates and (
            "perDeviceNodeSelection" in spec or ("sharedCounters" in spec and not spec.get("devices"))
        ):
            return False
        if "sharedCounters" in spec and not spec.get("devices") and not spec.get("nodeName"):
            return True
        places = spec.get("devices", []) if spec.get("perDeviceNodeSelection") else [spec]
        return any(self._sees(place) for place in places)

    def _sees(self, place: Object) -> bool:
        if place.get("nodeName"):
            return bool(place["nodeName"] == self.node)
        if place.get("allNodes"):
            return True
        terms = place.get("nodeSelector", {}).get("nodeSelectorTerms", [])
        return any(
            all(self.labels.get(r["key"]) in r["values"] for r in term.get("matchExpressions", [])) for term in terms
        )

    def _pool(self, name: tuple[str, str], seen: list[Object], everything: list[Object]) -> Pool | None:
        """The pool as the node sees it; None if the node's slices are obsolete."""
        generation = max(_generation(entry) for entry in seen)
        seen = sorted((e for e in seen if _generation(e) == generation), key=lambda e: e["metadata"]["name"])
        count = seen[0]["spec"]["pool"]["resourceSliceCount"]
        others: list[Object] = []
        if len(seen) != count:
            if any(_generation(entry) > generation for entry in everything):
                return None
            current = [entry for entry in everything if _generation(entry) == generation]
            if len(current) != count:
                return Pool(name, incomplete=True)
            others = [entry for entry in current if entry not in seen]
        pool = Pool(name, _offers(seen), _offers(others))
        names = [offer.device["name"] for offer in pool.offers]
        pool.invalid = len(names) != len(set(names))
        if "DRAPartitionableDevices" in self.gates:
            for entry in (*seen, *others):
                for declared in entry["spec"].get("sharedCounters", []):
                    pool.invalid |= declared["name"] in pool.counters
                    pool.counters[declared["name"]] = declared["counters"]
            for offer in (*pool.offers, *pool.elsewhere):
                for counter_set, counter, _ in _consumption(offer.device):
                    pool.invalid |= counter not in pool.counters.get(counter_set, {})
        return Pool(name, invalid=True) if pool.invalid else pool

    # -- claims

    def allocate(self, claims: Sequence[Object]) -> list[list[Pick]] | None:
        """The picks of each claim, None if the claims do not fit now. Raises Failure."""
        self.claims = [claim["spec"]["devices"] for claim in claims]
        self.every: dict[tuple[int, int, int], list[Offer]] = {}
        for number, claim in enumerate(self.claims):
            self._validate(number, claim)
        try:
            picks = self._one(0, 0, 0, 0, 0, ())
        except TooLarge:
            picks = None
        if picks is None:
            if any(pool.invalid for pool in self.pools):
                raise Failure("invalid pools were encountered")
            return None
        return [[pick for pick in picks if pick.claim == number] for number in range(len(claims))]

    def _validate(self, number: int, claim: Object) -> None:
        least = 0
        for position, request in enumerate(claim["requests"]):
            if "firstAvailable" in request and "DRAPrioritizedList" not in self.gates:
                raise Failure("subrequests while DRAPrioritizedList is off")
            sizes = []
            for sub, (_, spec) in enumerate(_options(request)):
                if "capacity" in spec and "DRAConsumableCapacity" not in self.gates:
                    raise Failure("capacity while DRAConsumableCapacity is off")
                if "adminAccess" in spec and "DRAAdminAccess" not in self.gates:
                    raise Failure("admin access while DRAAdminAccess is off")
                if spec["deviceClassName"] not in self.classes:
                    raise Failure("no such class")
                if spec.get("allocationMode") == "All":
                    self.every[number, position, sub] = self._all(spec)
                    sizes.append(len(self.every[number, position, sub]))
                else:
                    sizes.append(spec.get("count", 1))
            least += min(sizes)
        if least > MAX_RESULTS:
            raise Failure("too many devices")
        for constraint in claim.get("constraints", []):
            if "matchAttribute" not in constraint and "distinctAttribute" not in constraint:
                raise Failure("unknown constraint")

    def _all(self, spec: Object) -> list[Offer]:
        """What `All` means: everything selected that could give the capacity asked for as things are."""
        found = []
        for pool in self.pools:
            if pool.incomplete or pool.invalid:
                raise Failure("all devices of a pool that is incomplete or invalid")
            found += [o for o in pool.offers if self._selectable(spec, o) and self._roomy(spec, o, ())]
        return found

    def _selectable(self, spec: Object, offer: Offer) -> bool:
        if offer.device.get("bindingConditions") and "DRADeviceBindingConditions" not in self.gates:
            return False
        chosen = [*self.classes[spec["deviceClassName"]]["spec"].get("selectors", []), *spec.get("selectors", [])]
        return all(self.evaluate(s["cel"]["expression"], offer.driver, offer.device) for s in chosen) and (
            not offer.slice["spec"].get("perDeviceNodeSelection") or self._sees(offer.device)
        )

    # -- search

    def _one(
        self, claim: int, request: int, sub: int, index: int, start: int, picks: tuple[Pick, ...], inside: bool = False
    ) -> tuple[Pick, ...] | None:
        """Places the device number `index` of a request and all that follow. `inside`: the alternative is chosen."""
        if claim == len(self.claims):
            return picks
        requests = self.claims[claim]["requests"]
        if request == len(requests):
            try:
                return self._one(claim + 1, 0, 0, 0, 0, picks)
            except TooLarge:
                return None
        options = _options(requests[request])
        if "firstAvailable" in requests[request] and not inside:
            failed = False
            for number in range(len(options)):
                try:
                    found = self._one(claim, request, number, 0, 0, picks, inside=True)
                except TooLarge:
                    continue
                if found is not None:
                    return found
                failed = True
            if not failed:
                raise TooLarge
            return None
        name, spec = options[sub]
        every = self.every.get((claim, request, sub))
        if every is not None and not every:
            return None
        size = len(every) if every is not None else spec.get("count", 1)
        if index == size:
            return self._one(claim, request + 1, 0, 0, 0, picks)
        if sum(pick.claim == claim for pick in picks) + size - index > MAX_RESULTS:
            raise TooLarge

        def take(offer: Offer, start: int) -> tuple[Pick, ...] | None:
            takes = self._takes(spec, offer) if self._multiple(offer) else None
            pick = Pick(claim, request, name, requests[request]["name"], spec, offer, takes)
            return self._one(claim, request, sub, index + 1, start, (*picks, pick), inside)

        if every is not None:
            offer = every[index]
            if not self._available(claim, spec, offer, picks):
                return None
            if not self._constraints_hold(
                claim, (*picks, Pick(claim, request, name, requests[request]["name"], spec, offer, None))
            ):
                raise Failure("a constraint prevents getting all devices")
            return take(offer, 0) if self._roomy(spec, offer, picks) else None
        offers = [offer for pool in self.pools for offer in pool.offers]
        for position in range(start, len(offers)):
            offer = offers[position]
            if self._taken(claim, spec, offer, picks):
                continue
            if not self._selectable(spec, offer) or not self._roomy(spec, offer, picks):
                continue
            pick = Pick(claim, request, name, requests[request]["name"], spec, offer, None)
            if self._available(claim, spec, offer, picks) and self._constraints_hold(claim, (*picks, pick)):
                found = take(offer, position + 1)
                if found is not None:
                    return found
        return None

    # -- one device

    def _multiple(self, offer: Offer) -> bool:
        return bool(offer.device.get("allowMultipleAllocations")) and "DRAConsumableCapacity" in self.gates

    def _taken(self, claim: int, spec: Object, offer: Offer, picks: tuple[Pick, ...]) -> bool:
        """Whether somebody has the device for himself."""
        owners = {p.claim for p in picks if p.offer.id == offer.id and not self._multiple(p.offer)}
        if spec.get("adminAccess"):
            return claim in owners
        return offer.id in self.whole or bool(owners)

    def _available(self, claim: int, spec: Object, offer: Offer, picks: tuple[Pick, ...]) -> bool:
        if self._taken(claim, spec, offer, picks):
            return False
        if offer.device.get("consumesCounters"):
            if "DRAPartitionableDevices" not in self.gates:
                return False
            if not spec.get("adminAccess") and not self._counters_suffice(offer, picks):
                return False
            if not self._compatible(offer, () if spec.get("adminAccess") else picks):
                return False
        return "DRADeviceTaints" not in self.gates or not any(
            taint["effect"] in ("NoSchedule", "NoExecute")
            and not any(_tolerates(t, taint) for t in spec.get("tolerations", []))
            for taint in offer.device.get("taints", [])
        )

    def _takes(self, spec: Object, offer: Offer) -> dict[str, Fraction] | None:
        """What a share consumes of each capacity; None if the device does not offer it."""
        wanted = {
            _qualified(n, offer.driver): Fraction(a) for n, a in spec.get("capacity", {}).get("requests", {}).items()
        }
        takes = {}
        for name, offered in offer.device.get("capacity", {}).items():
            policy = offered.get("requestPolicy", {})
            amount = wanted.pop(_qualified(name, offer.driver), None)
            if amount is None:
                takes[name] = Fraction(policy.get("default", offered["value"]))
                continue
            if "validValues" in policy:
                larger = [v for v in map(Fraction, policy["validValues"]) if v >= amount]
                if not larger:
                    return None
                amount = larger[0]
            elif "validRange" in policy:
                least, step = Fraction(policy["validRange"]["min"]), policy["validRange"].get("step")
                if amount < least:
                    amount = least
                elif step is not None:
                    amount = least - (least - amount) // Fraction(step) * Fraction(step)
                if "max" in policy["validRange"] and amount > Fraction(policy["validRange"]["max"]):
                    return None
            takes[name] = amount
        return None if wanted else takes

    def _roomy(self, spec: Object, offer: Offer, picks: tuple[Pick, ...]) -> bool:
        if "DRAConsumableCapacity" not in self.gates:
            return True
        takes = self._takes(spec, offer)
        if takes is None:
            return False
        counted = () if spec.get("adminAccess") else [p for p in picks if p.offer.id == offer.id and not p.admin]
        used = {} if spec.get("adminAccess") else self.shared.get(offer.id, {})
        return all(
            amount + used.get(name, 0) + sum(p.takes.get(name, 0) for p in counted if p.takes)
            <= Fraction(offer.device["capacity"][name]["value"])
            for name, amount in takes.items()
        )

    def _counters_suffice(self, offer: Offer, picks: tuple[Pick, ...]) -> bool:
        """No counter of the pool may be overdrawn, those that the device does not consume included."""
        pool = next(pool for pool in self.pools if offer in pool.offers)
        taken = {o.id: o for o in (*pool.offers, *pool.elsewhere) if o.id in self.whole or o.id in self.shared}
        if not (self._multiple(offer) and (offer.id in self.shared or self._shared_by(offer, picks))):
            taken[offer.id] = offer
        else:
            return True
        taken |= {p.offer.id: p.offer for p in picks if p.offer.id[:2] == pool.name and not p.admin}
        spent: dict[tuple[str, str], Fraction] = {}
        for other in taken.values():
            for counter_set, counter, amount in _consumption(other.device):
                spent[counter_set, counter] = spent.get((counter_set, counter), Fraction(0)) + amount
        return all(
            spent.get((name, counter), 0) <= Fraction(declared["value"])
            for name, counters in pool.counters.items()
            for counter, declared in counters.items()
        )

    def _compatible(self, offer: Offer, picks: tuple[Pick, ...]) -> bool:
        """Compatibility groups (KEP-5963): all devices on a counter set have one in common, or none has any. With the
        gate off, devices with groups are left alone, and counter sets that an allocated one is on."""
        pool = next(pool for pool in self.pools if offer in pool.offers)
        held = [o for o in (*pool.offers, *pool.elsewhere) if o.id in self.whole or o.id in self.shared]
        for name, groups in _groups(offer.device).items():
            if "DRADeviceCompatibilityGroups" not in self.gates:
                if groups or any(_groups(other.device).get(name) for other in held):
                    return False
                continue
            others = [o for o in held if o.id != offer.id]
            others += [p.offer for p in picks if p.offer.id[:2] == pool.name and p.offer.id != offer.id and not p.admin]
            sets = [_groups(o.device)[name] for o in others if name in _groups(o.device)]
            if sets and (any(sets) or groups) and not groups.intersection(*sets):
                return False
        return True

    def _shared_by(self, offer: Offer, picks: tuple[Pick, ...]) -> bool:
        return any(p.offer.id == offer.id and not p.admin for p in picks)

    def _constraints_hold(self, claim: int, picks: tuple[Pick, ...]) -> bool:
        for constraint in self.claims[claim].get("constraints", []):
            names = constraint.get("requests", [])
            attribute = constraint.get("matchAttribute") or constraint["distinctAttribute"]
            sets = [
                self._values(pick, attribute)
                for pick in picks
                if pick.claim == claim and (not names or pick.base in names or pick.name in names)
            ]
            if not all(sets):
                return False
            if "matchAttribute" in constraint:
                if sets and not set.intersection(*sets):
                    return False
            elif len(set().union(*sets)) < sum(map(len, sets)):
                return False
        return True

    def _values(self, pick: Pick, name: str) -> set[tuple[str, Any]]:
        """The values of an attribute with their type; a scalar is a set of one, and derived attributes come first."""
        for derived in pick.spec.get("derivedAttributes", []):
            if derived["name"] == name:
                return {("string", self.evaluate(derived["expression"], pick.offer.driver, pick.offer.device))}
        attributes = pick.offer.device.get("attributes", {})
        domain, _, short = name.partition("/")
        found = attributes.get(name) or (attributes.get(short) if domain == pick.offer.driver else None)
        if not found:
            return set()
        ((kind, content),) = found.items()
        return {(kind.removesuffix("s"), v) for v in content} if isinstance(content, list) else {(kind, content)}

    # -- results

    def allocation(self, claim: Object, picks: Sequence[Pick]) -> dict[str, Any]:
        """`status.allocation`, with `shareID: True` for a share."""
        results = []
        for pick in picks:
            device, (driver, pool, name) = pick.offer.device, pick.offer.id
            result = {"request": pick.name, "driver": driver, "pool": pool, "device": name}
            shared = pick.takes is not None
            extra = {
                "adminAccess": pick.admin,
                "tolerations": pick.spec.get("tolerations", []),
                "bindingConditions": device.get("bindingConditions", []),
                "bindingFailureConditions": device.get("bindingFailureConditions", []),
                "shareID": shared,
                "consumedCapacity": dict(pick.takes or {}),
            }
            results.append(result | {key: content for key, content in extra.items() if content})
        answer: dict[str, Any] = {"devices": {"results": results}}
        config = self._config(claim["spec"]["devices"], picks)
        if config:
            answer["devices"]["config"] = config
        selector = self._node_selector(picks)
        if selector:
            answer["nodeSelector"] = {"nodeSelectorTerms": [selector]}
        return answer

    def _config(self, devices: Object, picks: Sequence[Pick]) -> list[dict[str, Any]]:
        chosen = {pick.base: pick for pick in picks}
        configs: list[dict[str, Any]] = []
        for name in dict.fromkeys(chosen[r["name"]].spec["deviceClassName"] for r in devices["requests"]):
            requests = [p.name for p in chosen.values() if p.spec["deviceClassName"] == name]
            published = self.classes[name]["spec"].get("config", [])
            configs += [{"source": "FromClass", "requests": list(requests), **config} for config in published]
        for config in devices.get("config", []):
            names = config.get("requests", [])
            if not names or any(base in names or pick.name in names for base, pick in chosen.items()):
                configs.append({**config, "source": "FromClaim"})
        for config in configs:
            names = config.get("requests", [])
            if all(base in names or pick.name in names for base, pick in chosen.items()) or not names:
                config.pop("requests", None)
        return configs

    def _node_selector(self, picks: Sequence[Pick]) -> dict[str, Any]:
        merged: dict[str, list[Any]] = {}
        for pick in picks:
            place = pick.offer.place
            if place.get("nodeName") or pick.offer.device.get("bindsToNode"):
                return {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [self.node]}]}
            for term in place.get("nodeSelector", {}).get("nodeSelectorTerms", []):
                for kind, requirements in term.items():
                    known = merged.setdefault(kind, [])
                    known += [requirement for requirement in requirements if requirement not in known]
        return merged


def _options(request: Object) -> list[tuple[str, Object]]:
    if "exactly" in request:
        return [(request["name"], request["exactly"])]
    return [(f"{request['name']}/{option['name']}", option) for option in request["firstAvailable"]]


def _offers(slices: Sequence[Object]) -> list[Offer]:
    return [Offer(entry, device) for entry in slices for device in entry["spec"].get("devices", [])]


def _generation(entry: Object) -> int:
    return int(entry["spec"]["pool"]["generation"])


def _id(result: Object) -> tuple[str, str, str]:
    return (result["driver"], result["pool"], result["device"])


def _qualified(name: str, driver: str) -> str:
    return name if "/" in name else f"{driver}/{name}"


def _consumption(device: Object) -> Iterator[tuple[str, str, Fraction]]:
    for taken in device.get("consumesCounters", []):
        for counter, amount in taken["counters"].items():
            yield taken["counterSet"], counter, Fraction(amount["value"])


def _tolerates(toleration: Object, taint: Object) -> bool:
    exists = toleration.get("operator") == "Exists"
    return (
        toleration.get("effect", taint["effect"]) == taint["effect"]
        and (toleration.get("key", taint["key"] if exists else None) == taint["key"])
        and (exists or toleration.get("value", "") == taint.get("value", ""))
    )


def _groups(device: Object) -> dict[str, set[str]]:
    return {
        taken["counterSet"]: set(taken.get("compatibilityGroups", [])) for taken in device.get("consumesCounters", [])
    }
