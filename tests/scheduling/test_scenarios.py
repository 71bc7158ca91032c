"""Behaviour scenarios: those of KAI next to the repository, and our own beside this file, one file a subject."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from bench import naive

from capstan.simulate import Scenario, load, run

CASES = Path(__file__).parents[3] / "shared" / "cases" / "kai"
PASSING = Path(__file__).with_name("scenarios.txt").read_text(encoding="utf-8").split()
"""`file#number` of every scenario that passes. A scenario left out needs its reason in docs/scheduling.md."""
OWN = Path(__file__).with_name("scenarios")
DIFFERENCES = OWN / "differences.yaml"
BEYOND_KAI = ("queues",)
"""Files about what the naive scheduler, which knows KAI's rules, knows nothing of."""


def scenarios() -> dict[str, Scenario]:
    return {
        f"{path.stem}#{number}": scenario
        for path in sorted(CASES.glob("*.json"))
        for number, scenario in enumerate(load(path.read_text(encoding="utf-8")))
    }


def own() -> dict[str, Scenario]:
    return {
        f"{path.stem}: {scenario.name}": scenario
        for path in sorted(OWN.glob("*.yaml"))
        if path != DIFFERENCES
        for scenario in load(path.read_text(encoding="utf-8"))
    }


def differences() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(DIFFERENCES.read_text(encoding="utf-8")))


@pytest.mark.skipif(not CASES.is_dir(), reason="the scenario files are not next to this checkout")
def test_every_listed_scenario_passes() -> None:
    known = scenarios()
    failed = {name: found for name in PASSING if (found := run(known[name]))}
    assert not failed


@pytest.mark.skipif(not CASES.is_dir(), reason="the scenario files are not next to this checkout")
def test_the_naive_scheduler_passes_them_too() -> None:
    """What is compared with it below is then compared with KAI's rules."""
    known = {name: scenario for name, scenario in scenarios().items() if not scenario.dra and "many" not in name}
    with naive.deciding():
        failed = {name: found for name, scenario in known.items() if (found := run(scenario))}
    assert not failed


@pytest.mark.parametrize("name", own())
def test_own_scenarios(name: str) -> None:
    scenario = own()[name]
    assert not run(scenario)
    if name.partition(":")[0] in BEYOND_KAI:
        return
    with naive.deciding():
        assert not run(scenario)


@pytest.mark.parametrize("number", range(len(differences())))
def test_what_differs_from_kai_differs_as_described(number: int) -> None:
    """`reads`: what KAI takes the cluster for, where the naive scheduler would not be told of the difference."""
    entry = differences()[number]
    assert entry["fault"]
    assert not run(msgspec.convert(entry["scenario"], Scenario))
    with naive.deciding():
        if "reads" not in entry:
            assert run(msgspec.convert(entry["scenario"], Scenario)), "no difference any more: take it from the list"
        read = entry["scenario"] | entry.get("reads", {}) | {"expect": entry["kai"]}
        assert not run(msgspec.convert(read, Scenario))
