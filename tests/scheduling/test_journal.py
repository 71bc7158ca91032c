"""The journal as a state machine: any moves, nested marks, rollbacks; the World always equals what a model says."""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from capstan.scheduling.canonical import Dump, dump
from capstan.scheduling.model import Status
from capstan.scheduling.world import Mark

sys.path.insert(0, str(Path(__file__).parent))
from clusters import gang, node, pod, queue, world

PLACED = [Status.ALLOCATED, Status.PIPELINED, Status.BINDING, Status.RUNNING, Status.RELEASING, Status.STUCK]
UNPLACED = [Status.PENDING, Status.SUCCEEDED, Status.FAILED]


class JournalMachine(RuleBasedStateMachine):
    """Moves tasks about as actions do, without asking whether they fit: the sums have to follow all the same."""

    def __init__(self) -> None:
        super().__init__()
        pods = [pod(f"w{i}", "whole", gpus=1 + i % 2) for i in range(3)]
        pods += [pod(f"s{i}", "shared", fraction="0.3") for i in range(3)]
        self.world = world(
            node("n0"),
            node("n1", gpus=2),
            queue("top"),
            queue("a", "top"),
            queue("b", "top"),
            gang("whole", "a", minimum=2),
            gang("shared", "b", priority="build"),
            *pods,
        )
        self.world.begin(0)
        self.uids = sorted(self.world.tasks)
        self.marks: list[tuple[Mark, Dump]] = []

    @rule(
        index=st.integers(0, 5), status=st.sampled_from(PLACED), name=st.sampled_from(["n0", "n1"]), leave=st.booleans()
    )
    def place(self, index: int, status: Status, name: str, leave: bool) -> None:
        task = self.world.tasks[self.uids[index]]
        devices = ("0",) if task.shape.share is not None else ()
        leaving = (self.world.nodes["n0"], devices) if leave and status == Status.PIPELINED else None
        target = self.world.nodes[name] if leaving is None else self.world.nodes["n1"]
        self.world.move(task, status, target, devices, leaving=leaving)

    @rule(index=st.integers(0, 5), status=st.sampled_from(UNPLACED))
    def lift(self, index: int, status: Status) -> None:
        self.world.move(self.world.tasks[self.uids[index]], status, None)

    @rule()
    def mark(self) -> None:
        self.marks.append((self.world.mark(), dump(self.world)))

    @precondition(lambda self: self.marks)
    @rule(back=st.integers(1, 3))
    def rollback(self, back: int) -> None:
        """To any open mark: later ones end with it."""
        del self.marks[max(1, len(self.marks) - back + 1) :]
        mark, before = self.marks.pop()
        self.world.rollback(mark)
        assert dump(self.world) == before

    @invariant()
    def queues_add_up(self) -> None:
        top, a, b = (self.world.queues[name] for name in ("top", "a", "b"))
        assert top.allocated == [x + y for x, y in zip(a.allocated, b.allocated, strict=True)]
        assert top.requested == [x + y for x, y in zip(a.requested, b.requested, strict=True)]
        assert a.fixed == [0, 0, 0]
        assert b.fixed == b.allocated

    def teardown(self) -> None:
        if self.marks:
            mark, before = self.marks[0]
            self.world.rollback(mark)
            assert dump(self.world) == before


TestJournal = JournalMachine.TestCase
TestJournal.settings = settings(deadline=None, max_examples=60, stateful_step_count=40)
