"""What simulated commands do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan.local.agents.process import Process, command_line
from capstan.local.agents.shell import Device, Surroundings

GPUS = (Device("NVIDIA A100-SXM4-40GB", "GPU-0"), Device("NVIDIA A100-SXM4-40GB", "GPU-1"))
LISTED = [f"GPU {i}: NVIDIA A100-SXM4-40GB (UUID: GPU-{i})" for i in range(2)]
ENDLESS = None


def shell(script: str, **around: object) -> Process:
    return Process(["sh", "-c", script], Surroundings(devices=GPUS, env={"NAME": "value"}, hostname="pod", **around))  # type: ignore[arg-type]


def lines(process: Process, until: float = 1e9) -> list[str]:
    return [line for _, line in process.lines(until)]


@pytest.mark.parametrize(
    ("script", "ends", "printed"),
    [
        ("exit 3", (0.0, 3), []),
        ("echo a; echo b", (0.0, 0), ["a", "b"]),
        ("sleep 1m; echo a", (60.0, 0), ["a"]),
        ("sleep infinity", ENDLESS, []),
        ("false && echo no || echo yes", (0.0, 0), ["yes"]),
        ("true || echo no; false", (0.0, 1), []),
        ("sleep 5 & sleep 2; wait; echo done", (5.0, 0), ["done"]),
        ("for i in 1 2; do echo $i; sleep 1; done; echo end", (2.0, 0), ["1", "2", "end"]),
        ("while false; do echo no; done; echo out", (0.0, 0), ["out"]),
        ("echo hidden > /dev/null; echo shown 2>&1", (0.0, 0), ["shown"]),
        ("echo $NAME ${NAME}; A=b; echo $A", (0.0, 0), ["value value", "b"]),
        ("echo 'a; b' \"c && d\"", (0.0, 0), ["a; b c && d"]),
        ("nvidia-smi -L | grep GPU", ENDLESS, LISTED),
        ("python train.py --epochs 900", ENDLESS, []),
        ("if true; then echo x; fi", ENDLESS, []),
        ("echo 'open quote", ENDLESS, []),
        ("hostname; printf '%s-%d\\n' a 1", (0.0, 0), ["pod", "a-1"]),
        ("exec sleep 4", (4.0, 0), []),
    ],
)
def test_scripts(script: str, ends: tuple[float, int] | None, printed: list[str]) -> None:
    process = shell(script)
    assert process.ends == ends
    assert lines(process) == printed


def test_nvidia_smi_lists_what_was_injected_and_is_missing_otherwise() -> None:
    assert lines(Process(["nvidia-smi", "-L"], Surroundings(devices=GPUS))) == LISTED
    missing = Process(["nvidia-smi"], Surroundings())
    assert missing.ends == (0.0, 127)


def test_mig_devices_are_listed_under_their_gpu() -> None:
    devices = [Device("NVIDIA A100-SXM4-40GB", f"MIG-{i}", parent="GPU-0", profile="3g.20gb") for i in range(2)]
    assert lines(Process(["nvidia-smi", "-L"], Surroundings(devices=devices))) == [
        "GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-0)",
        "  MIG 3g.20gb     Device  0: (UUID: MIG-0)",
        "  MIG 3g.20gb     Device  1: (UUID: MIG-1)",
    ]


def test_a_loop_prints_as_time_goes_by() -> None:
    process = shell("while true; do echo tick; sleep 10; done")
    assert process.ends is ENDLESS
    assert lines(process, until=35) == ["tick"] * 4


@pytest.mark.parametrize(
    ("argv", "offset", "answer"),
    [
        (["sleep", "infinity"], 5, None),
        (["sh", "-c", "sleep 100"], 5, None),
        (["sh", "-c", "trap 'exit 7' TERM; sleep 100 & wait"], 5, 7),
        (["sh", "-c", "sleep 10; trap 'exit 0' TERM; sleep 100"], 5, None),
        (["sh", "-c", "sleep 10; trap 'exit 0' TERM; sleep 100"], 15, 0),
        (["nginx"], 5, 0),
        ([], 5, 0),
    ],
)
def test_answers_to_a_termination_signal(argv: list[str], offset: float, answer: int | None) -> None:
    assert Process(argv, Surroundings(image="registry.k8s.io/pause:3.9")).on_terminate(offset) == answer


def test_known_images_do_what_they_are_for() -> None:
    image = "nvcr.io/nvidia/k8s/cuda-sample:vectoradd-cuda12.5.0"
    good = Process([], Surroundings(image=image, devices=GPUS))
    assert good.ends == (1.0, 0) and "Test PASSED" in lines(good)
    assert Process([], Surroundings(image=image)).ends == (0.0, 1)
    assert Process([], Surroundings(image="docker.io/library/ubuntu:22.04")).ends == (0.0, 0)
    assert Process([], Surroundings(image="registry.example/model-server:7")).ends is ENDLESS


def test_arguments_are_expanded_from_the_environment() -> None:
    assert command_line(["run"], ["$(A)/$(B)", "$$(A)"], {"A": "1"}) == ["run", "1/$(B)", "$(A)"]


@given(st.text(alphabet="abc ;&|<>'\"$(){}\n019=-#\\", max_size=60))
def test_no_script_breaks_the_shell(script: str) -> None:
    process = shell(script)
    assert process.ends is None or process.ends[0] >= 0
    assert len(lines(process, until=100)) <= 5000
