"""The behaviour scenarios kept next to the repository: every one listed here passes and has to go on passing."""

from __future__ import annotations

from pathlib import Path

import pytest

from capstan.simulate import Scenario, load, run

CASES = Path(__file__).parents[3] / "shared" / "cases" / "kai"
PASSING = Path(__file__).with_name("scenarios.txt").read_text(encoding="utf-8").split()
"""`file#number` of every scenario that passes. A scenario left out needs its reason in docs/scheduling.md."""


def scenarios() -> dict[str, Scenario]:
    return {
        f"{path.stem}#{number}": scenario
        for path in sorted(CASES.glob("*.json"))
        for number, scenario in enumerate(load(path.read_text(encoding="utf-8")))
    }


@pytest.mark.skipif(not CASES.is_dir(), reason="the scenario files are not next to this checkout")
def test_every_listed_scenario_passes() -> None:
    known = scenarios()
    failed = {name: found for name in PASSING if (found := run(known[name]))}
    assert not failed
