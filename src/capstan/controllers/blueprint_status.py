"""What the blueprint agent reports: from outcomes to the status of the Cluster object. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from capstan import blueprints
from capstan.api.base import Condition
from capstan.api.platform import AddonStatus, ClusterStatus, Drift

REMEMBERED_REPAIRS = 20


@dataclass(slots=True)
class Outcome:
    """What one pass of the agent saw and did. Messages and sets are by identity of the object."""

    compiled: blueprints.Compiled | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    unserved: dict[str, str] = field(default_factory=dict)
    """Not applied because the kind is not served yet."""
    waiting: dict[str, str] = field(default_factory=dict)
    """Applied but not ready yet."""
    findings: Sequence[blueprints.Finding] = ()
    found_at: str = ""
    """RFC 3339 with a fraction."""
    repaired: set[str] = field(default_factory=set)
    contested: set[str] = field(default_factory=set)
    """Left alone for a while because somebody changes them as often as they are repaired."""
    problem: tuple[str, str] | None = None
    """(reason, message) of what kept the agent from applying at all."""
    paused: bool = False

    @property
    def settled(self) -> bool:
        """Everything was applied, so that from now on a difference is drift."""
        return self.compiled is not None and not (self.failures or self.unserved or self.problem)


def status(before: ClusterStatus, outcome: Outcome, generation: int, now: str) -> ClusterStatus:
    """The next status. `now` is RFC 3339 with a fraction; what did not change keeps its time."""
    compiled = outcome.compiled
    after = msgspec.structs.replace(before, observed_generation=generation)
    if outcome.facts:
        after.facts = dict(outcome.facts)
    if compiled is not None:
        after.blueprint, after.version, after.variant = compiled.blueprint, compiled.version, compiled.variant
        after.objects = len(compiled.items)
        after.addons = _addons(compiled, outcome)
        if outcome.settled:
            after.digest = compiled.digest
            after.drift = _drift(before.drift, outcome, now)
    # Conditions carry whole seconds (metav1.Time).
    after.conditions = _conditions(before.conditions, after, outcome, f"{now.partition('.')[0]}Z")
    return after


def _addons(compiled: blueprints.Compiled, outcome: Outcome) -> list[AddonStatus]:
    rows: dict[str, AddonStatus] = {}
    for item in compiled.items:
        row = rows.setdefault(item.addon, AddonStatus(name=item.addon, phase="Ready"))
        row.objects += 1
        failure = outcome.failures.get(item.identity)
        waiting = outcome.unserved.get(item.identity) or outcome.waiting.get(item.identity)
        if failure:
            row.phase, row.message = "Failed", f"{item.identity}: {failure}"
        elif waiting and row.phase == "Ready":
            row.phase, row.message = "Progressing", f"{item.identity}: {waiting}"
        row.ready += not failure and not waiting
    return list(rows.values())


def _drift(before: Iterable[Drift], outcome: Outcome, now: str) -> list[Drift]:
    """Lasting drift first, then repairs, the newest first."""
    lasting = {(each.object, each.path): each for each in before if not each.repaired}
    history = [each for each in before if each.repaired]
    current: list[Drift] = []
    for finding in outcome.findings:
        known = lasting.pop(finding.key, None)
        repaired = finding.identity in outcome.repaired
        entry = Drift(
            object=finding.identity,
            path=finding.path,
            kind=finding.kind,
            manager=finding.manager,
            expected=finding.expected,
            found=finding.found,
            first_seen=known.first_seen if known is not None else outcome.found_at or now,
            repaired=now if repaired else "",
        )
        (history if repaired else current).append(entry)
    # What is no longer found was put right by somebody else.
    history += [msgspec.structs.replace(each, repaired=now) for each in lasting.values()]
    history.sort(key=lambda each: each.repaired, reverse=True)
    return current + history[:REMEMBERED_REPAIRS]


def _conditions(before: Iterable[Condition], after: ClusterStatus, outcome: Outcome, now: str) -> list[Condition]:
    known = {condition.type: condition for condition in before}
    lasting = [each for each in after.drift if not each.repaired]
    failed = "; ".join(f"{identity}: {message}" for identity, message in sorted(outcome.failures.items())[:3])
    pending = {**outcome.waiting, **outcome.unserved}
    waiting = "; ".join(f"{identity}: {message}" for identity, message in sorted(pending.items())[:3])
    what = f"{after.blueprint} {after.version}" + (f", variant {after.variant}" if after.variant else "")
    if outcome.paused:
        states = {"Paused": ("True", "Paused", "spec.paused is set; nothing is applied or repaired")}
    else:
        states = {"Paused": ("False", "Active", "")}
        reason, message = outcome.problem or ("ApplyFailed", failed)
        broken = outcome.problem is not None or bool(outcome.failures)
        states["Degraded"] = ("True", reason, message) if broken else ("False", "AsExpected", "")
        states["Progressing"] = ("True", "Waiting", waiting) if pending else ("False", "AsExpected", "")
        if broken:
            states["Ready"] = ("False", reason, message)
        elif pending:
            states["Ready"] = ("False", "Waiting", waiting)
        else:
            states["Ready"] = ("True", "Applied", what)
        fields = ", ".join(f"{each.object} {each.path}".strip() for each in lasting[:5])
        why = "Contested" if outcome.contested else "FieldsDiffer"
        states["Drifted"] = ("True", why, fields) if lasting else ("False", "AsApplied", "")
    result = dict(known)
    for kind, (value, reason, message) in states.items():
        old = known.get(kind)
        since = old.last_transition_time if old is not None and old.status == value else now
        result[kind] = Condition(
            type=kind,
            status=value,
            reason=reason,
            message=message,
            last_transition_time=since,
            observed_generation=after.observed_generation,
        )
    return [result[kind] for kind in sorted(result)]
