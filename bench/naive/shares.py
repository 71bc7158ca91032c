"""Fair shares as KAI's resource division has them: quotas first, even if they are more than there is to divide."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from capstan.scheduling.amounts import UNLIMITED, Amounts, dealt
from capstan.scheduling.model import Queue

Usage = Mapping[str, Mapping[str, float]]


def set_fair_shares(roots: Sequence[Queue], total: Amounts, usage: Usage, k: float) -> None:
    _divide_among([queue for queue in roots if not queue.error], total, usage, k)


def _divide_among(queues: Sequence[Queue], total: Sequence[int], usage: Usage, k: float) -> None:
    for i, amount in enumerate(total):
        fair = divide(amount, queues, i, usage, k)
        for queue in queues:
            quota, limit = queue.quota[i], queue.limit[i]
            queue.fair[i] = queue.entitled[i] = fair[queue.name]
            share = limit if quota == UNLIMITED else max(quota, fair[queue.name])
            queue.share[i] = share if limit == UNLIMITED else min(share, limit)
    for queue in queues:
        _divide_among([child for child in queue.children if not child.error], queue.fair, usage, k)


def divide(total: int, queues: Sequence[Queue], i: int, usage: Usage, k: float) -> dict[str, int]:
    """Queue -> its fair share of the resource at place `i`."""
    unit = dealt(i)
    wanted, fair = {}, {}
    for queue in queues:
        limit, quota = queue.limit[i], queue.quota[i]
        wanted[queue.name] = queue.requested[i] if limit == UNLIMITED else min(queue.requested[i], limit)
        fair[queue.name] = min(total if quota == UNLIMITED else quota, wanted[queue.name])
    left = total - sum(fair.values())
    levels = sorted({queue.priority for queue in queues}, reverse=True)
    remainders: dict[int, list[tuple[float, int, str]]] = {}
    for level in levels:
        rest: dict[str, tuple[float, int, str]] = {}
        again = left > 0
        while again:
            again = False
            hungry = [q for q in queues if q.priority == level and wanted[q.name] > fair[q.name]]
            weights = sum(q.weight[i] for q in hungry)
            if not weights:
                break
            parts = {}
            for q in hungry:
                n = q.weight[i] / weights
                parts[q.name] = max(0.0, n + k * (n - usage.get(q.name, {}).get(q.resources[i], 0.0)))
            whole, amount = sum(parts.values()), left
            if not whole:
                break
            for q in hungry:
                if not q.weight[i]:
                    continue
                share, want = amount * parts[q.name] / whole, wanted[q.name] - fair[q.name]
                given = want if want <= share else math.floor(share / unit) * unit
                fair[q.name] += given
                left -= given
                rest.pop(q.name, None)
                if share > given and want > share:
                    rest[q.name] = (given - share, q.rank, q.name)
                again = again or want < share
            again = again and left > 0
        remainders[level] = sorted(rest.values())
    for level in levels:
        for _, _, name in remainders[level]:
            given = max(0, min(unit, left))
            fair[name] += given
            left -= given
    return fair
