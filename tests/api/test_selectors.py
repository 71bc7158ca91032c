import pytest

from capstan.api.selectors import (
    InvalidSelector,
    LabelSelector,
    NodeSelectorTerm,
    Requirement,
    matches_all,
    parse_selector,
)


@pytest.mark.parametrize(
    ("text", "labels", "expected"),
    [
        ("app=web", {"app": "web"}, True),
        ("app==web,tier!=db", {"app": "web"}, True),
        ("tier in (a, b)", {"tier": "b"}, True),
        ("tier notin (a,b),app", {"app": "x", "tier": "b"}, False),
        ("!canary", {"canary": ""}, False),
        ("app=", {"app": ""}, True),
        ("", {}, True),
    ],
)
def test_text_selectors(text, labels, expected):
    assert matches_all(parse_selector(text), labels) is expected


@pytest.mark.parametrize("text", ["a=b=c", "in (a)", "a in (b", "a,,b", "=x"])
def test_malformed_selectors_are_refused(text):
    with pytest.raises(InvalidSelector, match="selector"):
        parse_selector(text)


def test_an_empty_label_selector_matches_everything_and_an_empty_node_term_nothing():
    assert LabelSelector().matches({"a": "b"})
    assert not NodeSelectorTerm().matches("n", {"a": "b"})


def test_numeric_node_requirements_ignore_labels_that_are_no_numbers():
    more = Requirement(key="cores", operator="Gt", values=["8"])
    assert more.matches({"cores": "16"})
    assert not more.matches({"cores": "many"})
    assert not more.matches({})
