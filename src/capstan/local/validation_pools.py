"""`resource.k8s.io/v1alpha3`: requests for the status of device pools (KEP-5677)."""

from __future__ import annotations

from capstan.local import validation_devices as rules
from capstan.local.structural_errors import invalid
from capstan.local.validation import Causes, Object, immutable
from capstan.local.validation_conditions import conditions


def leave_unanswered(request: Object) -> None:
    """A request with a status, however empty, has been answered."""
    request.pop("status", None)


def validate_request(new: Object, old: Object | None) -> Causes:
    causes: Causes = []
    spec = new["spec"]
    if old is not None:
        immutable(spec, old["spec"], "spec", causes)
        return causes
    rules.driver_name(spec["driver"], "spec.driver", causes)
    if "poolName" in spec:
        if spec["poolName"]:
            rules.pool_name(spec["poolName"], "spec.poolName", causes)
        else:
            causes.append(invalid("spec.poolName", "", "must be either unset or set to a non-empty string"))
    if "defaultPartitionTypeAttribute" in spec:
        attribute = spec["defaultPartitionTypeAttribute"]
        rules.fully_qualified_name(attribute, "spec.defaultPartitionTypeAttribute", causes)
    return causes


def validate_answer(new: Object, old: Object) -> Causes:
    """The first answer is final."""
    causes: Causes = []
    status, before = new.get("status") or {}, old.get("status")
    if before is not None:
        immutable(status, before, "status", causes)
        return causes
    for index, pool in enumerate(status.get("pools") or ()):
        rules.driver_name(pool["driver"], f"status.pools[{index}].driver", causes)
        rules.pool_name(pool["poolName"], f"status.pools[{index}].poolName", causes)
    conditions(status.get("conditions") or (), "status.conditions", causes)
    return causes
