"""A naive scheduler after KAI's rules, to measure the engine against and to compare decisions with.

It shares with the engine what a node and a claim are (`World`, its journal, single filters) and nothing of how
decisions are found: every pod looks at every node and scores it, every queue comparison starts from the sums, every
probe of victims is simulated from scratch. Sources: the rules of KAI Scheduler as docs/scheduling.md states them,
faults included.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager

from bench.naive.actions import STEPS
from bench.naive.shares import set_fair_shares


@contextmanager
def deciding() -> Iterator[None]:
    """`cycle` decides by the naive scheduler."""
    steps = vars(importlib.import_module("capstan.scheduling.cycle"))["_STEPS"]
    tenancy = vars(importlib.import_module("capstan.scheduling.tenancy"))
    before, divide = dict(steps), tenancy["set_fair_shares"]
    steps.update(STEPS)
    tenancy["set_fair_shares"] = set_fair_shares
    try:
        yield
    finally:
        steps.update(before)
        tenancy["set_fair_shares"] = divide
