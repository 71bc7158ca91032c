"""What queues used of late, as the schedulers of the shards remember it: fair shares depend on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from capstan import kube
from capstan.api import resources

if TYPE_CHECKING:
    from capstan.scheduling import Accounting


class QueueUsage(msgspec.Struct, rename="camel"):
    """Parts of a shard's capacity, 0 to 1, by resource. `window` and `half_life` say which time counts, and how."""

    shard: str
    parts: dict[str, float]
    window: str
    half_life: float
    """Seconds; 0 is no decay."""
    k_value: float


async def read_usage(client: kube.Client) -> dict[str, list[QueueUsage]]:
    """By queue. Empty where no shard counts usage, or where nothing was saved yet."""
    try:
        shards = (await client.list(resources.SCHEDULING_SHARDS)).items
    except kube.NotFound:
        return {}
    counting = [shard for shard in shards if shard.spec.usage_db_config is not None]
    if not counting:
        return {}
    from capstan import scheduling
    from capstan.controllers.usage import recall
    from capstan.embedded.accounts import NAMESPACE

    found: dict[str, list[QueueUsage]] = {}
    for shard in counting:
        settings = scheduling.shard_settings(shard, scheduling.Installation(), scheduling.Policy())
        if settings.accounting is None:
            continue
        name = shard.metadata.name
        try:
            usage = await recall(client, name, settings.accounting, NAMESPACE)
        except scheduling.CorruptUsage:
            continue  # the scheduler says so on the shard and counts anew
        for queue, parts in usage.shares().items():
            entry = QueueUsage(
                name, parts, _window(settings.accounting), settings.accounting.half_life, settings.policy.k_value
            )
            found.setdefault(queue, []).append(entry)
    return found


def _window(accounting: Accounting) -> str:
    from capstan.scheduling.usage import Cron, Sliding

    match accounting.window:
        case Sliding(size=size):
            return f"the last {spoken(size)}"
        case Cron(schedule=schedule):
            return f"the time since the cron schedule {schedule} last began"
    return "the present window"


def spoken(seconds: float) -> str:
    """`7 d`, `36 h`, `90 s`."""
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size or seconds == size:
            return f"{seconds / size:.4g} {unit}"
    return f"{seconds:.4g} s"


def sentence(queue: str, usage: QueueUsage) -> str:
    """For people: what was used, over which time, and what that means."""
    parts = ", ".join(
        f"{part:.0%} of the {_SPOKEN.get(name) or f'{name} GPUs'}" for name, part in sorted(usage.parts.items())
    )
    decay = f", older use counting half every {spoken(usage.half_life)}" if usage.half_life else ""
    share = "" if usage.k_value else "; kValue is 0, so it does not count"
    return f"queue {queue} used {parts} of shard {usage.shard} in {usage.window}{decay}{share}"


_SPOKEN = {"gpu": "GPUs", "cpu": "CPU", "memory": "memory"}
