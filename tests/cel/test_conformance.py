"""The runner of specification tests tells passed, failed and skipped apart, and reads protobuf text format."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan.cel import conformance, textproto

FILE = Path(__file__).parent / "simple.textproto"
FEATURES = Path(__file__).parent / "features.textproto"
AREAS = sorted((Path(__file__).parent / "areas").glob("*.textproto"))
FAILING = {
    *("values/not_uint", "errors/missing", "failing/unread_field", "failing/unread_type", "failing/unread_value"),
    *("failing/other_type", "failing/known", "failing/unknown", "failing/refused"),
}


def test_the_outcomes_are_counted_per_file_and_in_sum(capsys: pytest.CaptureFixture[str]) -> None:
    assert conformance.main(["-v", str(FILE)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "13 passed, 9 failed, 1 skipped"
    assert lines[-2] == f"{FILE}: 13 passed, 9 failed, 1 skipped"
    told = [line.split(":")[0].split() for line in lines if line.startswith("  ")]
    assert {name for outcome, name in told if outcome == "failed"} == FAILING
    assert [name for outcome, name in told if outcome == "skipped"] == ["bindings/message"]


@pytest.mark.parametrize(
    "test",
    ['"text"', "1", "{ name: '\\377' expr: 1 }", "{ expr: '1' bindings: 2 }", "{ expr: '1' value: { value: {} } }"],
)
def test_a_test_that_cannot_be_read_fails_and_those_after_it_count(test: str) -> None:
    content = f"section {{ name: 's' test: {test} test: {{ name: 'good' expr: 'true' }} }}"
    outcomes = [outcome for _, outcome, _ in conformance.run_file(content)]
    assert outcomes == ["failed", "passed"]


@pytest.mark.parametrize("content", ["nothing: 1", "section: 1", "section { test { expr: 'true' } } tests: 2"])
def test_a_file_of_another_kind_is_refused(content: str) -> None:
    with pytest.raises(textproto.TextFormatError, match="no SimpleTestFile"):
        list(conformance.run_file(content))


@pytest.mark.parametrize("path", AREAS, ids=[path.stem for path in AREAS])
def test_each_area_of_the_language_passes_and_only_messages_are_skipped(path: Path) -> None:
    for name, outcome, detail in conformance.run_file(path.read_text(encoding="utf-8")):
        expected = "skipped" if name.startswith("needs messages/") else "passed"
        assert outcome == expected, f"{name}: {detail}"


def test_every_form_of_test_that_the_specification_uses_is_understood(capsys: pytest.CaptureFixture[str]) -> None:
    assert conformance.main(["-v", str(FEATURES)]) == 0
    count = FEATURES.read_text().count("test {")
    assert capsys.readouterr().out.splitlines()[-1] == f"{count} passed, 0 failed, 0 skipped"


def test_the_runner_is_a_command() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "capstan.cel.conformance", str(FILE)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert run.stdout.splitlines()[-1] == "13 passed, 9 failed, 1 skipped"


def test_text_format_is_read() -> None:
    message = textproto.parse(
        "a: 1 b { c: \"x\" 'y\\n' d: [1, -2.5] } [t.u/V] < e: TRUE, h: [7]; > # comment\nf: 0x1F g: - inf"
        " [ a.b.c ]: 017 i: [] j: [{ k: 1.5f }, < k: 2e3 >] l: '\\x41\\101\\u00e9\\U0001F600\\377' m: -0x2 n: nan_ish"
    )
    assert message == [
        ("a", 1),
        ("b", [("c", b"xy\n"), ("d", 1), ("d", -2.5)]),
        ("[t.u/V]", [("e", "TRUE"), ("h", 7)]),
        ("f", 31),
        ("g", float("-inf")),
        ("[a.b.c]", 15),
        ("j", [("k", 1.5)]),
        ("j", [("k", 2000.0)]),
        ("l", "AAé😀".encode() + b"\xff"),
        ("m", -2),
        ("n", "nan_ish"),
    ]


DEEP = "a{" * 200 + "}" * 200


@pytest.mark.parametrize(
    "text", ["a {", "a: }", "a: 'x", "\x00", "a: [1", "a: '\\q'", "a: '\\ud800'", "[a", "a <}", DEEP]
)
def test_what_is_not_text_format_is_refused_with_its_line(text: str) -> None:
    with pytest.raises(textproto.TextFormatError, match="line 1"):
        textproto.parse(text)


@given(st.text(max_size=80) | st.lists(st.sampled_from("ab:{}<>[],;'\"1-./# \\\n")).map("".join))
def test_any_text_is_a_message_or_an_error(text: str) -> None:
    try:
        textproto.parse(text)
    except textproto.TextFormatError as error:
        assert "line " in str(error)


def test_a_file_that_cannot_be_read_is_one_failure_and_ends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.textproto"
    broken.write_text("section {")
    assert conformance.main([str(tmp_path / "missing"), str(broken), str(FILE)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "13 passed, 11 failed, 1 skipped"
