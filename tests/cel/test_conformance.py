"""The runner of specification tests tells passed, failed and skipped apart, and reads protobuf text format."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from capstan.cel import conformance, textproto

FILE = Path(__file__).parent / "simple.textproto"
FEATURES = Path(__file__).parent / "features.textproto"


def test_the_outcomes_are_counted_per_file_and_in_sum(capsys: pytest.CaptureFixture[str]) -> None:
    assert conformance.main(["-v", str(FILE)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "13 passed, 2 failed, 6 skipped"
    assert lines[-2] == f"{FILE}: 13 passed, 2 failed, 6 skipped"
    assert {line.split(":")[0].strip() for line in lines[:-2]} == {"values/not_uint", "errors/missing"}


def test_every_form_of_test_that_the_specification_uses_is_understood(capsys: pytest.CaptureFixture[str]) -> None:
    assert conformance.main(["-v", str(FEATURES)]) == 0
    count = FEATURES.read_text().count("test {")
    assert capsys.readouterr().out.splitlines()[-1] == f"{count} passed, 0 failed, 0 skipped"


def test_the_runner_is_a_command() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "capstan.cel.conformance", str(FILE)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert run.stdout.splitlines()[-1] == "13 passed, 2 failed, 6 skipped"


def test_text_format_is_read() -> None:
    message = textproto.parse(
        "a: 1 b { c: \"x\" 'y\\n' d: [1, -2.5] } [t.u/V] < e: TRUE h: [7] > # comment\nf: 0x1F g: -inf"
    )
    assert message == [
        ("a", 1),
        ("b", [("c", b"xy\n"), ("d", 1), ("d", -2.5)]),
        ("[t.u/V]", [("e", "TRUE"), ("h", 7)]),
        ("f", 31),
        ("g", float("-inf")),
    ]


@pytest.mark.parametrize("text", ["a {", "a: }", "a: 'x", "\x00", "a: [1"])
def test_what_is_not_text_format_is_refused_with_its_line(text: str) -> None:
    with pytest.raises(textproto.TextFormatError, match="line 1"):
        textproto.parse(text)


def test_a_file_that_cannot_be_read_is_one_failure_and_ends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.textproto"
    broken.write_text("section {")
    assert conformance.main([str(tmp_path / "missing"), str(broken), str(FILE)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "13 passed, 4 failed, 6 skipped"
