"""Costs: the estimate bounds what the meter counts, and both follow cel-go's weights."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstan import cel
from capstan.cel.cost import Meter

ENVIRONMENT = cel.environments.standard((("s", "string"), ("l", "list(int)"), ("x", "dyn")))


def spent(expression: str, **bindings: Any) -> int:
    meter = Meter(1_000_000)
    cel.compile(expression, ENVIRONMENT).evaluate_exactly(bindings, meter)
    return meter.spent


@pytest.mark.parametrize(
    ("expression", "cost"),
    [
        ("1 == 1", 1),
        ("x.a.b", 3),
        ("[1, 2, 3]", 10),
        ("{'a': 1}", 30),
        ("s.startsWith('a')", 12),  # s, the call, a tenth of 100 characters
        ("s + s", 23),
        ("s.contains('abcde')", 12),  # 10 by 1
        ("s.matches('abcdefgh')", 24),  # 11 by 2
        ("1 in l", 7),  # the list is looked through
    ],
)
def test_costs_have_the_weights_of_the_go_implementation(expression: str, cost: int) -> None:
    assert spent(expression, s="a" * 100, l=[5, 4, 3, 2, 1], x={"a": {"b": 1}}) == cost


def test_a_loop_costs_by_its_rounds() -> None:
    ten, twenty = (spent("l.map(e, e + 1)", l=list(range(count))) for count in (10, 20))
    assert twenty - ten == 10 * ((ten - 1) // 10)


def test_what_the_text_alone_costs_is_known_before_it_runs() -> None:
    program = cel.compile("[1, 2, 3].all(x, x > 0)", ENVIRONMENT)
    assert program.estimate.low <= spent("[1, 2, 3].all(x, x > 0)") <= program.estimate.high


expressions = st.sampled_from(
    [
        "l.all(e, e > 1) && s.contains('a')",
        "l.filter(e, e > 1).map(e, [e, e]).exists(p, p[0] == 3)",
        "s.split('a').join(s) == s.replace('a', 'bb')",
        "[s, s].exists(t, t.lowerAscii().matches('^a+$') || t in [s, 'b'])",
        "l.transformMap(i, e, e > 1, e * i) == {0: 1}",
        "cel.bind(t, s + s, t.startsWith(s) ? size(t) : 0) == l.sum()",
        "l.sort().slice(0, 1) == l.distinct() || has(x.a)",
        "cel.bind(a, optional.of(s + s).value(), cel.bind(b, [a + a, s].first().value(), b + b == s))",
        "cel.bind(a, '%s%f'.format([s, 1e300]), cel.bind(b, strings.quote(a + a), b.contains(b)))",
        "cel.bind(a, [[s, s], [s]].flatten(), (a + a + a).join(s).lowerAscii() == s)",
        "l.transformMapEntry(i, e, {string(i): s, s + string(i): s}).exists(k, v, v + k == s)",
        "cel.bind(a, s.replace('', s), a.split('').map(c, c + a).size() > 3)",
        "s.findAll('a').map(f, f + s) == [s] || x.a.orValue([s])[0] == s",
        "'%s %d'.format([s, size(l)]).size() > 3",
        "google.protobuf.Struct{fields: {s: s, 'b': l}}.all(k, k + s < s || k == s)",
        "google.protobuf.ListValue{values: [s, bytes(s)]} == [s, base64.encode(bytes(s))]",
        "cel.bind(p, format.labelValue().validate(s + s).orValue([s]), p.join(s).contains(s))",
        "string(url('/' + s)) == s || string(ip('::1')).contains(s)",
    ]
)


@settings(deadline=None, max_examples=300)
@given(expressions, st.text("ab", max_size=20), st.lists(st.integers(0, 5), min_size=1, max_size=10))
def test_no_evaluation_costs_more_than_the_estimate(expression: str, text: str, numbers: list[int]) -> None:
    bounded = cel.Environment(
        name="bounded",
        variables=ENVIRONMENT.variables,
        libraries=ENVIRONMENT.libraries,
        sizes={"string": 20, "list": 10, "map": 10, "dyn": 20},
        cost_limit=10**12,
        homogeneous=False,
    )
    program = cel.compile(expression, bounded)
    meter = Meter(10**12)
    try:
        program.evaluate_exactly({"s": text, "l": numbers, "x": {}}, meter)
    except cel.EvaluationError:
        pass
    assert meter.spent <= program.estimate.high
