"""What a simulated container does, on virtual time: a `Process` is a pure function of its command and surroundings.

It prints lines at offsets from its start, and ends or runs until it is stopped. Nothing is executed. Since a process is
deterministic, an agent that was restarted continues it where it was, and logs need not be kept: they are told again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from capstan.local.agents.shell import SHELLS, Program, Surroundings, forever, run_command, run_script

KILLED = 137
"""The exit code after SIGKILL."""
_MOST_STEPS = 5000
"""Steps after which a program counts as endless; its later output is not shown."""
_BARE_IMAGES = ("ubuntu", "debian", "busybox", "alpine", "bash", "fedora", "cuda")
"""Images whose default command is a shell, which ends at once without a terminal."""


class Process:
    """A started program. Offsets are seconds since its start."""

    def __init__(self, argv: Sequence[str], around: Surroundings) -> None:
        self._argv, self._around = tuple(argv), around
        self.ends: tuple[float, int] | None = None
        """(offset, exit code), None when it runs until stopped."""
        now = 0.0
        program = start(self._argv, around)
        for _ in range(_MOST_STEPS):
            try:
                step = next(program)
            except StopIteration as end:
                self.ends = (now, end.value)
                return
            now += step.wait
            if now == float("inf"):
                return

    def lines(self, until: float = float("inf")) -> Iterator[tuple[float, str]]:
        """(offset, line) of everything printed up to an offset."""
        now = 0.0
        for _, step in zip(range(_MOST_STEPS), start(self._argv, self._around), strict=False):
            now += step.wait
            if now > until or now == float("inf"):
                return
            if step.text is not None:
                yield now, step.text

    def on_terminate(self, offset: float) -> int | None:
        """The exit code with which the program answers SIGTERM at that offset, None if it ignores the signal."""
        now, answer = 0.0, _default_answer(self._argv)
        for _, step in zip(range(_MOST_STEPS), start(self._argv, self._around), strict=False):
            now += step.wait
            if now > offset:
                break
            if step.trap is not None:
                answer = step.trap
        return answer


def command_line(command: Sequence[str], args: Sequence[str], env: Mapping[str, str]) -> list[str]:
    """What a container runs: `$(NAME)` is replaced from the environment, `$$(NAME)` stays (`v1.Container`)."""
    pattern = re.compile(r"\$(\$)?\(([A-Za-z_][A-Za-z0-9_.-]*)\)")

    def value(found: re.Match[str]) -> str:
        return f"$({found[2]})" if found[1] else env.get(found[2], found[0])

    return [pattern.sub(value, part) for part in (*command, *args)]


def start(argv: Sequence[str], around: Surroundings) -> Program:
    """The program of a command line, or the image's own when there is none."""
    if not argv:
        return _image(around)
    if argv[0].rpartition("/")[2] in SHELLS:
        flags = [part for part in argv[1:] if part.startswith("-")]
        rest = [part for part in argv[1:] if not part.startswith("-")]
        if rest:
            return run_script(rest[0], around) if any("c" in flag for flag in flags) else forever()
    return run_command(list(argv), around)


def _default_answer(argv: Sequence[str]) -> int | None:
    """The first process of a container ignores signals it does not handle: shells and sleep do not, servers do."""
    first = argv[0].rpartition("/")[2] if argv else ""
    return None if first in SHELLS or first in ("sleep", "tail", "cat") else 0


def _image(around: Surroundings) -> Program:
    name = around.image.rpartition("/")[2].partition(":")[0]
    tag = around.image.rpartition("/")[2]
    if "vectoradd" in tag or "vector-add" in tag:
        return _vector_add(around)
    if "nbody" in tag or "nvbandwidth" in tag:
        return _benchmark(tag, around)
    if name == "hello-world":
        return run_command(["echo", "Hello from Docker!"], around)
    if name in _BARE_IMAGES:
        return run_command(["true"], around)
    return forever()


def _vector_add(around: Surroundings) -> Program:
    if not around.devices:
        text = "Failed to allocate device vector A (error code no CUDA-capable device is detected)!"
        yield from run_command(["echo", text], around)
        return 1
    return (
        yield from run_script(
            "echo '[Vector addition of 50000 elements]';"
            "echo 'Copy input data from the host memory to the CUDA device';"
            "echo 'CUDA kernel launch with 196 blocks of 256 threads'; sleep 1;"
            "echo 'Copy output data from the CUDA device to the host memory'; echo 'Test PASSED'; echo Done",
            around,
        )
    )


def _benchmark(tag: str, around: Surroundings) -> Program:
    if not around.devices:
        yield from run_command(["echo", "no CUDA-capable device is detected"], around)
        return 1
    return (yield from run_script(f"nvidia-smi -L; sleep 5; echo '{tag}: simulated, nothing was measured'", around))
