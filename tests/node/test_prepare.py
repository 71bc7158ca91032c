"""Preparing claims on simulated GPUs: what it leaves on the machine, and that no kill leaves anything half-done."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from capstan.api.resource import ResourceClaim
from capstan.node import cdi, steps
from capstan.node.errors import ClaimRefused, DeviceBusy, NodeError, NvmlError
from capstan.node.inventory import Catalog
from capstan.node.ledger import Ledger
from capstan.node.nvml import Nvml
from capstan.node.prepare import LEDGER_FILE, Preparer
from capstan.node.simulated import SimulatedNvml

Gpus = Callable[[str], SimulatedNvml]
LONG = {"kind": "GpuConfig", "sharing": {"strategy": "TimeSlicing", "timeSlicingConfig": {"interval": "Long"}}}
MPS = {"kind": "GpuConfig", "sharing": {"strategy": "MPS", "mpsConfig": {"defaultActiveThreadPercentage": 50}}}
CDI_ID = "k8s.gpu.nvidia.com/claim="


class Machine:
    """One node with two A100s: its GPUs outlive the preparers that are started on it one after another."""

    def __init__(self, gpus: Gpus, directory: Path) -> None:
        self.nvml = gpus("a100x2")
        self.catalog = Catalog(self.nvml.host())
        self.plugin_dir, self.cdi_dir = directory / "plugin", directory / "cdi"
        self.gpu, self.other_gpu = (gpu.uuid for gpu in self.nvml.host().gpus)
        self.current: Preparer | None = None

    def preparer(self, nvml: Nvml | None = None) -> Preparer:
        """The next one; the one before is gone."""
        if self.current is not None:
            self.current.close()
        self.current = Preparer(nvml or self.nvml, lambda: self.catalog, "node-0", self.plugin_dir, self.cdi_dir)
        return self.current

    def started(self) -> Preparer:
        preparer = self.preparer()
        assert preparer.recover() == []
        return preparer

    def specs(self) -> list[str]:
        return sorted(path.name for path in self.cdi_dir.glob("*")) if self.cdi_dir.exists() else []

    def is_clean(self) -> bool:
        """Nothing is left of any claim."""
        nvml = self.nvml
        return (
            all(
                not nvml.mig_devices(gpu)
                and not nvml.mig_enabled(gpu)
                and nvml.timeslice(gpu) == 0
                and nvml.compute_mode(gpu) == "Default"
                and not nvml.memory_limits(gpu)
                and nvml.vfio_nodes(gpu) is None
                for gpu in (self.gpu, self.other_gpu)
            )
            and not nvml.mps()
            and self.specs() == []
        )

    def edits(self, claim: ResourceClaim, device: str) -> dict[str, Any]:
        (found,) = cdi.resolve(self.cdi_dir, [f"{CDI_ID}{claim.metadata.uid}-{device}"])
        return found


@pytest.fixture
def machine(gpus: Gpus, tmp_path: Path) -> Machine:
    return Machine(gpus, tmp_path)


def soon() -> float:
    return time.monotonic() + 45


def scenarios(claims: Any) -> dict[str, ResourceClaim]:
    return {
        "whole": claims.on("a", "gpu-0"),
        "timeslice": claims.on("a", "gpu-0", "gpu-1", config=(claims.opaque(LONG),)),
        "mps": claims.on("a", "gpu-0", config=(claims.opaque(MPS),)),
        "share": claims.share("a", "gpu-0", "4Gi"),
        "mig": claims.on("a", "gpu-0-mig-3g20gb-9-4", "gpu-0-mig-1g5gb-19-0", "gpu-0-mig-1g5gb-19-1"),
        "vfio": claims.on("a", "gpu-vfio-0"),
        "mixed": claims.on("a", "gpu-vfio-1", "gpu-0-mig-2g10gb-14-2"),
    }


SCENARIOS = ["whole", "timeslice", "mps", "share", "mig", "vfio", "mixed"]


# -- what a container gets


def test_a_whole_gpu_gets_its_device_files(machine: Machine, claims: Any) -> None:
    claim = claims.on("a", "gpu-0")
    (holding,) = machine.started().prepare(claim, soon())
    assert holding.cdi_name == "uid-a-gpu-0"
    edits = machine.edits(claim, "gpu-0")["containerEdits"]
    assert edits["env"] == ["NVIDIA_VISIBLE_DEVICES=void"]
    nodes = [node["path"] for node in edits["deviceNodes"]]
    assert nodes == [
        "/dev/nvidiactl",
        "/dev/nvidia-uvm",
        "/dev/nvidia-uvm-tools",
        "/dev/nvidia-modeset",
        "/dev/nvidia0",
    ]


def test_a_mig_device_gets_its_parents_file_and_its_capabilities(machine: Machine, claims: Any) -> None:
    claim = claims.on("a", "gpu-0-mig-3g20gb-9-4")
    machine.started().prepare(claim, soon())
    device = machine.edits(claim, "gpu-0-mig-3g20gb-9-4")
    (made,) = machine.nvml.mig_devices(machine.gpu)
    nodes = [node["path"] for node in device["containerEdits"]["deviceNodes"]][-3:]
    assert nodes == ["/dev/nvidia0", *(f"/dev/nvidia-caps/nvidia-cap{n}" for n in (made.gi_cap, made.ci_cap))]
    assert device["annotations"]["platform.capstan.dev/uuid"] == made.uuid


def test_a_share_gets_its_limit_by_hook_and_by_the_driver(machine: Machine, claims: Any) -> None:
    claim = claims.share("a", "gpu-0", "4Gi")
    machine.started().prepare(claim, soon())
    edits = machine.edits(claim, "gpu-0")["containerEdits"]
    assert "NVIDIA_GPU_MEMORY_LIMIT=4096" in edits["env"]
    (hook,) = edits["hooks"]
    assert hook["hookName"] == "createRuntime"
    assert hook["args"][1:] == ["apply-cuda-memory-limits", "--gpu-id", machine.gpu]
    assert machine.nvml.memory_limits(machine.gpu) == {"uid-a-gpu-0": 4 << 30}


def test_passthrough_gets_the_vfio_group_and_nothing_of_nvidias(machine: Machine, claims: Any) -> None:
    claim = claims.on("a", "gpu-vfio-1")
    machine.started().prepare(claim, soon())
    edits = machine.edits(claim, "gpu-vfio-1")["containerEdits"]
    assert edits["env"] == ["NVIDIA_VISIBLE_DEVICES=void"]
    assert [node["path"] for node in edits["deviceNodes"]] == ["/dev/vfio/17"]


def test_mps_gets_the_daemons_pipe(machine: Machine, claims: Any) -> None:
    claim = claims.on("a", "gpu-0", config=(claims.opaque(MPS),))
    machine.started().prepare(claim, soon())
    edits = machine.edits(claim, "gpu-0")["containerEdits"]
    assert "CUDA_MPS_PIPE_DIRECTORY=/tmp/nvidia-mps" in edits["env"]
    assert [mount["containerPath"] for mount in edits["mounts"]] == ["/tmp/nvidia-mps", "/dev/shm"]
    assert machine.nvml.compute_mode(machine.gpu) == "ExclusiveProcess"
    assert list(machine.nvml.mps()) == [machine.gpu]


def test_two_shares_of_one_gpu_in_one_claim_have_names_of_their_own(machine: Machine, claims: Any) -> None:
    shares = [
        claims.result("gpu-0", f"r{i}", shareID=f"s{i}", consumedCapacity={"memory": f"{i + 1}Gi"}) for i in range(2)
    ]
    holdings = machine.started().prepare(claims("a", *shares), soon())
    assert [holding.cdi_name for holding in holdings] == ["uid-a-gpu-0-s0", "uid-a-gpu-0-s1"]
    assert sorted(machine.nvml.memory_limits(machine.gpu).values()) == [1 << 30, 2 << 30]


# -- there and back


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_unprepare_leaves_nothing(scenario: str, machine: Machine, claims: Any) -> None:
    preparer = machine.started()
    preparer.prepare(scenarios(claims)[scenario], soon())
    assert not machine.is_clean()
    preparer.unprepare("uid-a", soon())
    assert machine.is_clean() and preparer.records() == []
    preparer.unprepare("uid-a", soon())


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_prepare_may_be_repeated_also_by_the_next_process(scenario: str, machine: Machine, claims: Any) -> None:
    claim = scenarios(claims)[scenario]
    first = machine.started()
    answer = first.prepare(claim, soon())
    assert first.prepare(claim, soon()) == answer
    first.close()
    spec = (machine.cdi_dir / machine.specs()[0]).read_bytes()
    second = machine.started()
    assert second.prepare(claim, soon()) == answer
    assert (machine.cdi_dir / machine.specs()[0]).read_bytes() == spec
    second.unprepare("uid-a", soon())
    assert machine.is_clean()


def test_what_claims_share_goes_with_the_last_of_them(machine: Machine, claims: Any) -> None:
    preparer = machine.started()
    for name in ("a", "b"):
        preparer.prepare(claims.share(name, "gpu-0", "4Gi", config=(claims.opaque(LONG),)), soon())
    preparer.unprepare("uid-a", soon())
    assert machine.nvml.timeslice(machine.gpu) == 3
    assert list(machine.nvml.memory_limits(machine.gpu)) == ["uid-b-gpu-0"]
    preparer.unprepare("uid-b", soon())
    assert machine.is_clean()


def test_mig_mode_goes_off_with_the_last_mig_device(machine: Machine, claims: Any) -> None:
    preparer = machine.started()
    preparer.prepare(claims.on("a", "gpu-0-mig-1g5gb-19-0"), soon())
    preparer.prepare(claims.on("b", "gpu-0-mig-1g5gb-19-1"), soon())
    preparer.unprepare("uid-a", soon())
    assert machine.nvml.mig_enabled(machine.gpu)
    preparer.unprepare("uid-b", soon())
    assert machine.is_clean()


def test_a_claim_that_was_reallocated_changes_its_devices(machine: Machine, claims: Any) -> None:
    preparer = machine.started()
    preparer.prepare(claims.on("a", "gpu-0-mig-1g5gb-19-0"), soon())
    preparer.prepare(claims.on("a", "gpu-1"), soon())
    assert machine.nvml.mig_devices(machine.gpu) == []
    assert [holding.device for record in preparer.records() for holding in record.holdings] == ["gpu-1"]


def test_an_overlap_is_refused_until_the_holder_is_unprepared(machine: Machine, claims: Any) -> None:
    preparer = machine.started()
    preparer.prepare(claims.on("a", "gpu-0"), soon())
    with pytest.raises(DeviceBusy, match="claim default/a holds"):
        preparer.prepare(claims.on("b", "gpu-0-mig-1g5gb-19-0"), soon())
    preparer.unprepare("uid-a", soon())
    preparer.prepare(claims.on("b", "gpu-0-mig-1g5gb-19-0"), soon())


def test_a_claim_without_devices_of_ours_is_not_journaled(machine: Machine, claims: Any) -> None:
    preparer = machine.started()
    assert preparer.prepare(claims("a", claims.result("nic-0") | {"driver": "nic.example.com"}), soon()) == ()
    assert not (machine.plugin_dir / LEDGER_FILE).exists()


# -- healing


def test_a_missing_cdi_file_is_written_again(machine: Machine, claims: Any) -> None:
    claim = claims.on("a", "gpu-0")
    preparer = machine.started()
    preparer.prepare(claim, soon())
    (machine.cdi_dir / machine.specs()[0]).unlink()
    preparer.prepare(claim, soon())
    assert machine.edits(claim, "gpu-0")


def test_a_mig_device_that_somebody_destroyed_is_made_again(machine: Machine, claims: Any) -> None:
    claim = claims.on("a", "gpu-0-mig-3g20gb-9-4")
    preparer = machine.started()
    preparer.prepare(claim, soon())
    (lost,) = machine.nvml.mig_devices(machine.gpu)
    machine.nvml.destroy_compute_instance(machine.gpu, lost.gi_id)
    machine.nvml.destroy_gpu_instance(machine.gpu, lost.gi_id)
    preparer.prepare(claim, soon())
    (made,) = machine.nvml.mig_devices(machine.gpu)
    device = machine.edits(claim, "gpu-0-mig-3g20gb-9-4")
    assert made.uuid == device["annotations"]["platform.capstan.dev/uuid"] != lost.uuid


def test_a_time_slice_that_somebody_changed_is_set_again(machine: Machine, claims: Any) -> None:
    claim = claims.on("a", "gpu-0", config=(claims.opaque(LONG),))
    preparer = machine.started()
    preparer.prepare(claim, soon())
    machine.nvml.set_timeslice(machine.gpu, 0)
    preparer.prepare(claim, soon())
    assert machine.nvml.timeslice(machine.gpu) == 3


# -- somebody else's


def foreign_mig(machine: Machine, profile_id: int, start: int) -> str:
    machine.nvml.set_mig_enabled(machine.gpu, True)
    gi_id = machine.nvml.create_gpu_instance(machine.gpu, profile_id, start)
    return machine.nvml.create_compute_instance(machine.gpu, gi_id).uuid


def test_somebody_elses_mig_device_is_used_and_never_destroyed(machine: Machine, claims: Any) -> None:
    theirs = foreign_mig(machine, 9, 4)
    preparer = machine.started()
    claim = claims.on("a", "gpu-0-mig-3g20gb-9-4", "gpu-0-mig-1g5gb-19-0")
    preparer.prepare(claim, soon())
    assert machine.edits(claim, "gpu-0-mig-3g20gb-9-4")["annotations"]["platform.capstan.dev/uuid"] == theirs
    preparer.unprepare("uid-a", soon())
    assert [device.uuid for device in machine.nvml.mig_devices(machine.gpu)] == [theirs]
    assert machine.nvml.mig_enabled(machine.gpu)


def test_somebody_elses_mig_device_in_the_way_is_an_error_that_leaves_nothing(machine: Machine, claims: Any) -> None:
    theirs = foreign_mig(machine, 9, 4)
    preparer = machine.started()
    with pytest.raises(NvmlError, match="INSUFFICIENT_RESOURCES"):
        preparer.prepare(claims.on("a", "gpu-0-mig-1g5gb-19-0", "gpu-0-mig-1g5gb-19-5"), soon())
    assert [device.uuid for device in machine.nvml.mig_devices(machine.gpu)] == [theirs]
    assert preparer.records() == [] and machine.specs() == []


def test_only_orphaned_specs_of_our_own_are_collected(machine: Machine, claims: Any) -> None:
    preparer = machine.started()
    preparer.prepare(claims.on("a", "gpu-0"), soon())
    orphan = json.loads((machine.cdi_dir / machine.specs()[0]).read_text())
    record = json.loads(orphan["annotations"]["platform.capstan.dev/record"]) | {"uid": "uid-gone"}
    orphan["annotations"]["platform.capstan.dev/record"] = json.dumps(record)
    (machine.cdi_dir / "k8s.gpu.nvidia.com-claim_uid-gone.json").write_text(json.dumps(orphan))
    (machine.cdi_dir / "k8s.gpu.nvidia.com-claim_theirs.json").write_text('{"kind": "k8s.gpu.nvidia.com/claim"}')
    (machine.cdi_dir / "nvidia.yaml").write_text("kind: nvidia.com/gpu")
    assert preparer.recover() == []
    assert machine.specs() == [
        "k8s.gpu.nvidia.com-claim_theirs.json",
        "k8s.gpu.nvidia.com-claim_uid-a.json",
        "nvidia.yaml",
    ]


def test_an_observer_outlives_what_it_observes_without_holding_it(machine: Machine, claims: Any) -> None:
    preparer = machine.started()
    preparer.prepare(claims.on("a", "gpu-0-mig-1g5gb-19-0"), soon())
    observer = claims("b", claims.result("gpu-0-mig-1g5gb-19-0", adminAccess=True))
    preparer.prepare(observer, soon())
    assert machine.edits(observer, "gpu-0-mig-1g5gb-19-0")["annotations"]["platform.capstan.dev/uuid"]
    preparer.unprepare("uid-a", soon())
    assert machine.nvml.mig_devices(machine.gpu) == []
    preparer.unprepare("uid-b", soon())
    assert machine.is_clean()


# -- failures


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_failure_at_any_step_takes_back_all_before_it(
    scenario: str, machine: Machine, claims: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = ["set_mig_enabled", "create_gpu_instance", "create_compute_instance", "set_timeslice", "set_compute_mode"]
    calls += ["set_memory_limit", "start_mps", "bind_vfio"]
    preparer = machine.started()
    failed = 0
    for call in calls:
        machine.nvml.fail(call, "UNKNOWN")
        try:
            preparer.prepare(scenarios(claims)[scenario], soon())
        except NvmlError:
            failed += 1
        else:
            machine.nvml._faults.clear()
            preparer.unprepare("uid-a", soon())
        assert machine.is_clean() and preparer.records() == []

    def broken(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(cdi, "write", broken)
    with pytest.raises(OSError, match="no space"):
        preparer.prepare(scenarios(claims)[scenario], soon())
    assert machine.is_clean() and preparer.records() == []
    assert failed or scenario == "whole"


def test_a_failed_take_back_is_tried_again_by_recover(machine: Machine, claims: Any) -> None:
    preparer = machine.started()
    machine.nvml.fail("set_compute_mode", "UNKNOWN")
    machine.nvml.fail("set_compute_mode", "TIMEOUT")
    with pytest.raises(NodeError, match=r"UNKNOWN; and what was done could not be taken back yet: .*TIMEOUT"):
        preparer.prepare(claims.on("a", "gpu-0", config=(claims.opaque(LONG),)), soon())
    assert [record.state for record in preparer.records()] == ["started"]
    with pytest.raises(DeviceBusy):
        preparer.prepare(claims.on("b", "gpu-0"), soon())
    assert preparer.recover() == []
    assert machine.is_clean()
    preparer.prepare(claims.on("b", "gpu-0"), soon())


def test_a_lost_gpu_can_be_unprepared(machine: Machine, claims: Any) -> None:
    """Else its pod would stay Terminating until the machine is rebooted."""
    preparer = machine.started()
    preparer.prepare(claims.on("a", "gpu-0-mig-3g20gb-9-4"), soon())
    machine.nvml.lose(machine.gpu)
    preparer.unprepare("uid-a", soon())
    assert preparer.records() == [] and machine.specs() == []


def test_a_reboot_forgets_all_claims(machine: Machine, claims: Any) -> None:
    first = machine.started()
    first.prepare(claims.on("a", "gpu-0-mig-3g20gb-9-4"), soon())
    first.close()
    machine.nvml.reboot()
    second = machine.started()
    assert second.records() == [] and machine.is_clean()
    second.prepare(claims.on("a", "gpu-0-mig-3g20gb-9-4"), soon())
    second.close()
    assert len(machine.started().records()) == 1


@pytest.mark.parametrize("damage", ["garbage", "truncated", "record"])
def test_a_corrupt_ledger_is_put_aside_and_rebuilt_from_cdi_specs(damage: str, machine: Machine, claims: Any) -> None:
    first = machine.started()
    claim = claims.on("a", "gpu-0-mig-3g20gb-9-4")
    first.prepare(claim, soon())
    before = first.records()
    first.close()
    path = machine.plugin_dir / LEDGER_FILE
    if damage == "garbage":
        path.write_bytes(b"this is no database" * 500)
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:5000])
    else:
        broken = Ledger(path)
        broken._open().execute("UPDATE claims SET record = '{}'")
        broken.close()
    second = machine.started()
    assert second.quarantined == machine.plugin_dir / f"{LEDGER_FILE}.corrupt-0"
    assert second.quarantined.exists()
    assert second.records() == before
    second.prepare(claim, soon())
    second.unprepare("uid-a", soon())
    assert machine.is_clean()


def test_a_second_corruption_keeps_the_first_one_for_inspection(machine: Machine, claims: Any) -> None:
    path = machine.plugin_dir / LEDGER_FILE
    for number in range(2):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no database" * 100)
        preparer = machine.preparer()
        assert preparer.quarantined == path.with_name(f"{LEDGER_FILE}.corrupt-{number}")
        preparer.close()


# -- kills


class Killed(BaseException):
    """The process is dead: nothing it does from here on has an effect."""


class Death:
    """Kills at the n-th effect, before or after it happened; counts how many there are."""

    def __init__(self, at: int | None) -> None:
        self.at, self.count = at, 0

    def around(self, effect: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self._tick()
            answer = effect(*arguments, **named)
            self._tick()
            return answer

        return call

    def _tick(self) -> None:
        if self.at is not None and self.count >= self.at:
            raise Killed
        self.count += 1


class MortalNvml:
    """Counts every call that changes the GPUs."""

    def __init__(self, nvml: SimulatedNvml, death: Death) -> None:
        self._nvml, self._death = nvml, death

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._nvml, name)
        changes = name.startswith(("set_", "create_", "destroy_", "start_", "stop_", "bind_", "release_"))
        return self._death.around(found) if changes else found


def mortal(machine: Machine, death: Death, patch: pytest.MonkeyPatch) -> Preparer:
    patch.setattr(steps.cdi, "write", death.around(cdi.write))
    patch.setattr(steps.cdi, "remove", death.around(cdi.remove))
    patch.setattr(Ledger, "put", death.around(Ledger.put))
    patch.setattr(Ledger, "remove", death.around(Ledger.remove))
    return machine.preparer(MortalNvml(machine.nvml, death))  # type: ignore[arg-type]


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("work", ["prepare", "unprepare"])
def test_a_kill_at_any_point_leaves_all_or_nothing(work: str, scenario: str, machine: Machine, claims: Any) -> None:
    claim = scenarios(claims)[scenario]

    def attempt(at: int | None) -> int:
        """One life of a driver that dies at its at-th effect of the work; how many effects it had."""
        if work == "unprepare":
            earlier = machine.started()
            earlier.prepare(claim, soon())
            earlier.close()
        death = Death(at)
        with pytest.MonkeyPatch.context() as patch:
            preparer = mortal(machine, death, patch)
            try:
                preparer.prepare(claim, soon()) if work == "prepare" else preparer.unprepare("uid-a", soon())
            except Killed:
                pass
            preparer.close()
        return death.count

    effects = attempt(None)
    machine.started().unprepare("uid-a", soon())
    assert effects >= 4
    for at in range(effects):
        attempt(at)
        reborn = machine.started()
        if not reborn.records():
            assert machine.is_clean(), f"killed at {at} of {effects}"
        reborn.prepare(claim, soon())
        for record in reborn.records():
            assert record.state == "prepared"
            assert all(steps.intact(step, record, reborn._machine) for step in record.steps)
        reborn.unprepare("uid-a", soon())
        assert machine.is_clean(), f"killed at {at} of {effects}"
        reborn.close()


# -- together


def test_gpus_are_worked_on_in_parallel_and_one_gpu_by_one_claim_at_a_time(machine: Machine, claims: Any) -> None:
    preparer = machine.started()
    inside, release = threading.Event(), threading.Event()
    create = machine.nvml.create_gpu_instance

    def slow(gpu: str, profile_id: int, start: int) -> int:
        if gpu == machine.gpu:
            inside.set()
            release.wait(10)
        return create(gpu, profile_id, start)

    machine.nvml.create_gpu_instance = slow  # type: ignore[method-assign]
    first = threading.Thread(target=preparer.prepare, args=(claims.on("a", "gpu-0-mig-1g5gb-19-0"), soon()))
    first.start()
    assert inside.wait(10)
    preparer.prepare(claims.on("b", "gpu-1-mig-1g5gb-19-0"), soon())
    with pytest.raises(DeviceBusy, match="still being changed"):
        preparer.prepare(claims.on("c", "gpu-0-mig-1g5gb-19-1"), time.monotonic() + 0.05)
    release.set()
    first.join(10)
    preparer.prepare(claims.on("c", "gpu-0-mig-1g5gb-19-1"), soon())
    assert sorted(record.name for record in preparer.records()) == ["a", "b", "c"]


def test_many_claims_at_once_never_hold_the_same_hardware(machine: Machine, claims: Any) -> None:
    preparer = machine.started()
    devices = ["gpu-0", "gpu-vfio-0", "gpu-0-mig-3g20gb-9-0", "gpu-0-mig-3g20gb-9-4", "gpu-0-mig-1g5gb-19-5", "gpu-1"]

    def worker(number: int) -> None:
        for turn in range(12):
            claim = claims.on(f"{number}", devices[(number + turn) % len(devices)])
            try:
                preparer.prepare(claim, soon())
                held = [h for record in preparer.records() for h in record.holdings if record.state == "prepared"]
                assert len({(h.gpu, s) for h in held for s in range(h.start, h.start + h.size)}) == sum(
                    h.size for h in held
                )
            except DeviceBusy:
                pass
            preparer.unprepare(f"uid-{number}", soon())

    threads = [threading.Thread(target=worker, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert machine.is_clean() and preparer.records() == []


def test_a_claim_of_a_gone_device_is_refused_and_its_record_kept_out(machine: Machine, claims: Any) -> None:
    preparer = machine.started()
    with pytest.raises(ClaimRefused, match="has no device gpu-7"):
        preparer.prepare(claims.on("a", "gpu-7"), soon())
    assert preparer.records() == []


def test_records_survive_the_journal_bit_for_bit(machine: Machine, claims: Any) -> None:
    preparer = machine.started()
    preparer.prepare(scenarios(claims)["mixed"], soon())
    before = preparer.records()
    preparer.close()
    assert Ledger(machine.plugin_dir / LEDGER_FILE).records() == before != []


def test_every_commit_of_the_journal_is_synced_to_disk(machine: Machine, claims: Any) -> None:
    preparer = machine.started()
    preparer.prepare(claims.on("a", "gpu-0"), soon())
    connection = preparer._ledger._open()
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,), "FULL"
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
