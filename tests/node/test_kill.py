"""`kill -9` of a driver in the middle of its work, again and again, on GPUs and a disk that survive it."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from capstan.node import models, steps
from capstan.node.inventory import Catalog
from capstan.node.prepare import Preparer
from capstan.node.simulated import SimulatedNvml

DRIVER = """
import sys, time, itertools, msgspec
from pathlib import Path
from capstan.api.resource import ResourceClaim
from capstan.node import models
from capstan.node.inventory import Catalog
from capstan.node.prepare import Preparer
from capstan.node.simulated import SimulatedNvml

directory = Path(sys.argv[1])
nvml = SimulatedNvml("node-0", models.node_model("a100x2"), directory / "gpus.json")
catalog = Catalog(nvml.host())
preparer = Preparer(nvml, lambda: catalog, "node-0", directory / "plugin", directory / "cdi")
assert preparer.recover() == []
devices = {
    "a": ["gpu-0-mig-3g20gb-9-4", "gpu-0-mig-1g5gb-19-0"],
    "b": ["gpu-0-mig-2g10gb-14-2"],
    "c": ["gpu-vfio-1"],
}
print("ready", flush=True)
for name in itertools.cycle(devices):
    results = [
        {"request": f"r{i}", "driver": "gpu.nvidia.com", "pool": "node-0", "device": device}
        for i, device in enumerate(devices[name])
    ]
    claim = msgspec.convert(
        {
            "metadata": {"name": name, "namespace": "default", "uid": name},
            "status": {"allocation": {"devices": {"results": results}}},
        },
        ResourceClaim,
    )
    if preparer._ledger.get(name) is None:
        print("preparing", name, flush=True)
        preparer.prepare(claim, time.monotonic() + 45)
        print("prepared", name, flush=True)
    else:
        print("unpreparing", name, flush=True)
        preparer.unprepare(name, time.monotonic() + 45)
        print("unprepared", name, flush=True)
"""


def test_no_acknowledged_prepare_is_lost_and_nothing_is_held_twice(tmp_path: Path) -> None:
    chance = random.Random(7)
    acknowledged: dict[str, bool] = {}
    for _ in range(8):
        child = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        seen = [child.stdout.readline() for _ in range(chance.randrange(8))]
        time.sleep(chance.uniform(0.0, 0.02))
        child.send_signal(signal.SIGKILL)
        child.wait()
        for line in (*seen, *child.stdout):
            if not line.endswith("\n"):
                break
            word, name = line.split()
            if word.endswith("ing"):
                acknowledged.pop(name, None)
            else:
                acknowledged[name] = word == "prepared"
        child.stdout.close()
        check(tmp_path, acknowledged)
    assert acknowledged


def check(directory: Path, acknowledged: dict[str, bool]) -> None:
    """What the next driver finds: every record whole, every acknowledged one there, no hardware without a record."""
    nvml = SimulatedNvml("node-0", models.node_model("a100x2"), directory / "gpus.json")
    catalog = Catalog(nvml.host())
    preparer = Preparer(nvml, lambda: catalog, "node-0", directory / "plugin", directory / "cdi")
    assert preparer.recover() == []
    records = preparer.records()
    for record in records:
        assert record.state == "prepared"
        if acknowledged.get(record.name):
            assert all(steps.intact(step, record, preparer._machine) for step in record.steps)
    for name, prepared in acknowledged.items():
        assert any(record.name == name for record in records) == prepared
    mig = [device for gpu in nvml.host().gpus for device in nvml.mig_devices(gpu.uuid)]
    held = [holding for record in records for holding in record.holdings if holding.kind == "mig"]
    assert len(mig) <= len(held)
    assert len(list((directory / "cdi").glob("*.json"))) <= len(records)
    preparer.close()
