"""A shell for simulated containers: enough of `sh` for the commands that manifests write, as a generator of steps.

Understood: `;`, newlines, `&`, `&&`, `||`, `|`, redirections, `while`/`until`/`for` loops, assignments, `$NAME`, and
the commands of `_COMMANDS`. A command that is not known runs until it is stopped, as a server or a training would.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field

SHELLS = frozenset({"sh", "bash", "ash", "dash"})
_NOT_FOUND = 127
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LOOPS = frozenset({"while", "until", "for"})
_OPERATORS = frozenset({";", "\n", "&", "&&", "||", "|"})


@dataclass(frozen=True)
class Device:
    """A GPU or, with `parent` (the GPU's UUID) and `profile`, a MIG device, as `nvidia-smi -L` lists it."""

    product: str
    uuid: str
    parent: str = ""
    profile: str = ""


@dataclass(frozen=True)
class Surroundings:
    """What a process sees of its container."""

    image: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    devices: Sequence[Device] = ()
    hostname: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing a program does: it waits (seconds), prints a line, or says how SIGTERM ends it from now on."""

    wait: float = 0.0
    text: str | None = None
    trap: int | None = None


Program = Generator[Step, None, int]
"""Steps, then the exit code."""


class _Exit(Exception):
    """`exit N` leaves the whole script."""

    def __init__(self, code: int) -> None:
        self.code = code


def forever() -> Program:
    yield Step(wait=float("inf"))
    return 0


def run_script(text: str, around: Surroundings) -> Program:
    """The program of `sh -c text`. A script that cannot be understood runs until it is stopped."""
    try:
        words = _words(text)
    except ValueError:
        return (yield from forever())
    try:
        return (yield from _Shell(around).block(words))
    except _Exit as end:
        return end.code


def run_command(argv: list[str], around: Surroundings) -> Program:
    """The program of one command without a shell."""
    try:
        return (yield from _Shell(around).command(argv))
    except _Exit as end:
        return end.code


def _words(text: str) -> list[str]:
    """Words and operators; a quoted operator is a word. Raises ValueError for an open quote."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|<>\n")
    lexer.whitespace = " \t\r"
    lexer.whitespace_split = True
    lexer.commenters = "#"
    words: list[str] = []
    for word in lexer:
        # shlex joins neighbouring operator characters: `;\n` and `&\n` are one token.
        words += re.findall(r"&&|\|\||>>|[;&|<>\n]", word) if word and not word.strip(";&|<>\n") else [word]
    return words


class _Shell:
    def __init__(self, around: Surroundings) -> None:
        self.around = around
        self.variables = dict(around.env)
        self.background = 0.0
        """Seconds until the last background job ends, from now."""

    def block(self, words: list[str]) -> Program:
        """A list of commands with their separators."""
        code, position, run = 0, 0, True
        while position < len(words):
            word = words[position]
            if word in _OPERATORS:
                position, run = position + 1, True
                continue
            end = _end_of_command(words, position)
            operator = words[end] if end < len(words) else ";"
            if run and operator == "&":
                yield from self._in_background(words[position:end])
                code = 0
            elif run:
                code = yield from self._one(words[position:end])
            run = {"&&": code == 0, "||": code != 0}.get(operator, True)
            position = end + 1
        return code

    def _in_background(self, words: list[str]) -> Program:
        """Its output appears at once; `wait` waits until it is done."""
        length = 0.0
        for step in _Shell(self.around).block(words):
            length += step.wait
            if length == float("inf"):
                break
            if step.text is not None:
                yield step
        self.background = max(self.background, length)
        return 0

    def _one(self, words: list[str]) -> Program:
        if words[0] in _LOOPS:
            return (yield from self._loop(words) if {"do", "done"} <= set(words[1:]) else forever())
        if words[0] in ("if", "case", "function") or words[0].endswith("()"):
            return (yield from forever())
        plain: list[str] = []
        silent = False
        position = 0
        while position < len(words):
            if words[position] in (">", ">>", "<", "&"):
                # `2>&1` comes as `2`, `>`, `&`, `1`; a file as `>`, name.
                duplicate = words[position + 1 : position + 2] == ["&"]
                silent = silent or (words[position] in (">", ">>") and not duplicate and plain[-1:] != ["2"])
                if plain[-1:] in (["1"], ["2"]):
                    plain.pop()
                position += 3 if duplicate else 2
            else:
                plain.append(words[position])
                position += 1
        program = self.command(plain)
        if not silent:
            return (yield from program)
        while True:
            try:
                step = next(program)
            except StopIteration as end:
                code: int = end.value
                return code
            if step.text is None:
                yield step

    def _loop(self, words: list[str]) -> Program:
        # What follows the loop's own `done` is a redirection.
        do, done = words.index("do"), len(words) - 1 - words[::-1].index("done")
        head, body = words[1:do], words[do + 1 : done]
        if words[0] == "for":
            code = 0
            for value in head[2:]:
                if value in (";", "\n"):
                    continue
                self.variables[head[0]] = self._expand(value)
                code = yield from self.block(body)
            return code
        while True:
            test = yield from self.block(head)
            if (test == 0) != (words[0] == "while"):
                return 0
            yield from self.block(body)
            # A loop that never waits would spin at one moment of time.
            yield Step(wait=0.001)

    def command(self, argv: list[str]) -> Program:
        """One simple command; assignments in front of it stay, as in `A=1 B=2`."""
        while argv and (found := re.fullmatch(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", argv[0], re.DOTALL)):
            self.variables[found[1]] = self._expand(found[2])
            argv = argv[1:]
        if not argv:
            return 0
        argv = [self._expand(word) for word in argv]
        name, args = argv[0].rpartition("/")[2], argv[1:]
        if name == "exec":
            return (yield from self.command(args))
        handler = _COMMANDS.get(name)
        if handler is None:
            return (yield from forever())
        return (yield from handler(self, args))

    def _expand(self, word: str) -> str:
        return re.sub(
            r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*))",
            lambda found: self.variables.get(found[1] or found[2], ""),
            word,
        )


def _end_of_command(words: list[str], start: int) -> int:
    """The position of the operator after the command that starts here; loops end with their own `done`."""
    depth, position = 0, start
    while position < len(words):
        word = words[position]
        begins = position == start or words[position - 1] in _OPERATORS or words[position - 1] == "do"
        if begins and word in _LOOPS:
            depth += 1
        elif begins and word == "done":
            depth -= 1
        elif depth == 0 and (
            word in (";", "\n", "&&", "||", "|") or (word == "&" and words[position - 1] not in (">", ">>"))
        ):
            return position
        position += 1
    return position


def _sleep(shell: _Shell, args: list[str]) -> Program:
    total = 0.0
    for text in args:
        found = re.fullmatch(r"([0-9.]+)([smhd]?)", text)
        if found is None and text not in ("infinity", "inf"):
            yield Step(text=f"sleep: invalid time interval '{text}'")
            return 1
        total += float(found[1]) * _UNITS[found[2] or "s"] if found else float("inf")
    shell.background = max(0.0, shell.background - total)
    yield Step(wait=total)
    return 0


def _echo(shell: _Shell, args: list[str]) -> Program:
    words = args[1:] if args[:1] in (["-n"], ["-e"]) else args
    yield Step(text=" ".join(words))
    return 0


def _printf(shell: _Shell, args: list[str]) -> Program:
    text = args[0] if args else ""
    for value in args[1:]:
        before, _, after = text.partition("%s") if "%s" in text else text.partition("%d")
        text = before + value + after
    for line in text.replace("\\n", "\n").rstrip("\n").split("\n"):
        yield Step(text=line)
    return 0


def _exit(shell: _Shell, args: list[str]) -> Program:
    yield Step()
    raise _Exit(int(args[0]) & 0xFF if args and args[0].isdigit() else 0)


def _trap(shell: _Shell, args: list[str]) -> Program:
    if {"TERM", "SIGTERM", "15"} & set(args[1:]) and (found := re.search(r"exit\s*([0-9]*)", args[0])):
        yield Step(trap=int(found[1] or 0))
    return 0


def _wait(shell: _Shell, args: list[str]) -> Program:
    waiting, shell.background = shell.background, 0.0
    yield Step(wait=waiting)
    return 0


def _nvidia_smi(shell: _Shell, args: list[str]) -> Program:
    """Without devices the tool itself is missing: it is the device's CDI spec that brings it into the container."""
    devices = shell.around.devices
    if not devices:
        yield Step(text="nvidia-smi: not found")
        return _NOT_FOUND
    gpus: dict[str, list[Device]] = {}
    for device in devices:
        gpus.setdefault(device.parent or device.uuid, []).append(device)
    for number, (uuid, members) in enumerate(gpus.items()):
        yield Step(text=f"GPU {number}: {members[0].product} (UUID: {uuid})")
        for index, device in enumerate(member for member in members if member.parent):
            yield Step(text=f"  MIG {device.profile:<11} Device {index:>2}: (UUID: {device.uuid})")
    return 0


def _environment(shell: _Shell, args: list[str]) -> Program:
    for name, value in sorted(shell.variables.items()):
        if not args or name in args:
            yield Step(text=value if args else f"{name}={value}")
    return 0


def _hostname(shell: _Shell, args: list[str]) -> Program:
    yield Step(text=shell.around.hostname)
    return 0


def _nothing(shell: _Shell, args: list[str]) -> Program:
    yield Step()
    return 0


def _false(shell: _Shell, args: list[str]) -> Program:
    yield Step()
    return 1


_COMMANDS: dict[str, Callable[[_Shell, list[str]], Program]] = {
    "sleep": _sleep,
    "echo": _echo,
    "printf": _printf,
    "exit": _exit,
    "trap": _trap,
    "wait": _wait,
    "nvidia-smi": _nvidia_smi,
    "env": _environment,
    "printenv": _environment,
    "hostname": _hostname,
    "false": _false,
    **dict.fromkeys(
        (
            "true",
            ":",
            "ls",
            "cd",
            "set",
            "export",
            "mkdir",
            "touch",
            "rm",
            "cat",
            "date",
            "test",
            "[",
            "ulimit",
            "nvcc",
        ),
        _nothing,
    ),
}
