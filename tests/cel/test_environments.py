"""Admission policies and CRD rules: their variables, their types, their limits."""

from __future__ import annotations

import zoneinfo
from datetime import datetime
from typing import Any

import pytest

from capstan import cel
from capstan.cel.admission import Variables
from capstan.cel.authorization import Authorizer, Decision, Request

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "replicas": {"type": "integer"},
        "minReplicas": {"type": "integer"},
        "ratio": {"type": "number"},
        "name": {"type": "string", "maxLength": 20},
        "namespace": {"type": "string"},
        "my-field.x": {"type": "string"},
        "since": {"type": "string", "format": "date-time"},
        "timeout": {"type": "string", "format": "duration"},
        "port": {"x-kubernetes-int-or-string": True},
        "note": {"type": "string", "nullable": True},
        "weights": {"type": "array", "maxItems": 10, "items": {"type": "number"}},
        "items": {"type": "array", "items": {"type": "object", "properties": {"key": {"type": "string"}}}},
        "labels": {"type": "object", "additionalProperties": {"type": "string", "maxLength": 63}, "maxProperties": 5},
    },
}
SELF: dict[str, Any] = {
    "replicas": 3,
    "minReplicas": 1,
    "ratio": 1,
    "name": "abc",
    "namespace": "default",
    "my-field.x": "x",
    "since": "2024-05-01T00:00:00Z",
    "timeout": "90s",
    "port": "http",
    "note": None,
    "weights": [1, 0.5],
    "items": [{"key": "a"}, {"key": "b"}],
    "labels": {"app": "web"},
}


@pytest.mark.parametrize(
    "rule",
    [
        "self.replicas >= self.minReplicas",
        "self.ratio == 1.0 && self.ratio / 2.0 == 0.5",
        "self.name.startsWith('a') && self.name.size() <= 20",
        "self.__namespace__ == 'default'",
        "self.my__dash__field__dot__x == 'x' && self.`my-field.x` == 'x'",
        "self.since.getMonth() == 4 && self.since < timestamp('2030-01-01T00:00:00Z')",
        "self.timeout == duration('1m30s')",
        "self.port == 'http' || self.port == 80",
        "self.note == null",
        "self.weights.all(w, w > 0.0) && self.weights.sum() == 1.5",
        "self.items.exists(i, i.key == 'b')",
        "self.labels.all(k, k.matches('^[a-z]+$')) && self.labels['app'] == 'web'",
        "has(self.labels) && !has(self.labels.missing)",
        "self.?name.orValue('') == 'abc' && self.?since.hasValue()",
    ],
)
def test_the_schema_gives_self_its_types(rule: str) -> None:
    assert cel.compile(rule, cel.environments.crd_rule(SCHEMA)).evaluate({"self": SELF}) is True


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("self.typo == 1", "undefined field 'typo'"),
        ("self.replicas == 'x'", "found no matching overload for '_==_' applied to '(int, string)'"),
        ("self.ratio == 1", "found no matching overload for '_==_' applied to '(double, int)'"),
        ("self.replicas", "must evaluate to bool"),
        ("self.items.all(a, self.items.all(b, a.key.contains(b.key)))", "exceeds cost limit"),
        ("self.name.matches('(')", "invalid matches argument"),
    ],
)
def test_a_rule_that_cannot_work_is_refused(rule: str, message: str) -> None:
    with pytest.raises(cel.CompileError) as refused:
        cel.compile(rule, cel.environments.crd_rule(SCHEMA))
    assert message in str(refused.value)


LISTS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "ports": {
            "type": "array",
            "maxItems": 10,
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["port"],
            "items": {"type": "object", "properties": {"port": {"type": "integer"}, "name": {"type": "string"}}},
        },
    },
}


@pytest.mark.parametrize(
    "rule",
    [
        "self.tags == oldSelf.tags",
        "self.tags == ['b', 'a'] && self.tags != ['a'] && self.tags != ['a', 'c']",
        "self.tags + ['c', 'a'] == ['c', 'b', 'a']",
        "self.ports == oldSelf.ports",
        "(self.ports + oldSelf.ports).size() == 2",
        "self.ports.all(p, p in oldSelf.ports)",
    ],
)
def test_sets_and_maps_written_as_lists_have_no_order(rule: str) -> None:
    first, second = {"port": 80, "name": "http"}, {"port": 443, "name": "https"}
    bindings = {
        "self": {"tags": ["a", "b"], "ports": [first, second]},
        "oldSelf": {"tags": ["b", "a"], "ports": [second, first]},
    }
    assert cel.compile(rule, cel.environments.crd_rule(LISTS)).evaluate(bindings) is True


@pytest.mark.parametrize(
    ("rule", "data"),
    [
        ("self.since < timestamp(0)", {"since": 5}),
        ("self.since < timestamp(0)", {"since": "yesterday"}),
        ("self.replicas + 1 > 0", {"replicas": "three"}),
        ("self.name.size() > 0", {"name": None}),
        ("self.weights.all(w, w > 0.0)", {"weights": 1}),
        ("self.items.all(i, i.key == '')", {"items": [None]}),
    ],
)
def test_data_that_breaks_its_schema_is_an_error_of_the_evaluation(rule: str, data: dict[str, Any]) -> None:
    with pytest.raises(cel.EvaluationError):
        cel.compile(rule, cel.environments.crd_rule(SCHEMA)).evaluate({"self": data})


def test_a_transition_rule_says_that_it_reads_the_old_object() -> None:
    program = cel.compile("self.replicas >= oldSelf.replicas", cel.environments.crd_rule(SCHEMA))
    assert program.names == {"self", "oldSelf"}
    assert program.evaluate({"self": {"replicas": 2}, "oldSelf": {"replicas": 3}}) is False


def test_a_root_object_shows_its_name_and_kind() -> None:
    environment = cel.environments.crd_rule(SCHEMA, resource=True)
    program = cel.compile("self.metadata.name.endsWith('-x') && self.kind == 'Thing'", environment)
    assert program.evaluate({"self": {"kind": "Thing", "metadata": {"name": "a-x"}}}) is True


def test_an_admission_expression_reads_request_object_and_params() -> None:
    program = cel.compile(
        "object.spec.replicas <= params.max && request.userInfo.username != 'mallory'"
        " && namespaceObject.metadata.labels['env'] == 'prod' && (oldObject == null || oldObject.spec.replicas > 0)",
        cel.environments.admission(),
    )
    bindings = {
        "object": {"spec": {"replicas": 3}},
        "oldObject": None,
        "params": {"max": 5},
        "request": {"userInfo": {"username": "alice", "groups": []}},
        "namespaceObject": {"metadata": {"labels": {"env": "prod"}}},
    }
    assert program.evaluate(bindings) is True


def test_a_misspelled_request_field_is_refused() -> None:
    with pytest.raises(cel.CompileError, match="undefined field 'userinfo'"):
        cel.compile("request.userinfo.username == 'a'", cel.environments.admission())


def test_variables_are_typed_and_computed_when_first_used() -> None:
    replicas = cel.compile("object.spec.replicas + 1", cel.environments.admission(result=None))
    broken = cel.compile("1 / 0", cel.environments.admission(result=None))
    environment = cel.environments.admission({"replicas": replicas.result, "broken": broken.result})
    bindings: dict[str, Any] = {"object": {"spec": {"replicas": 2}}}
    variables = Variables({"replicas": replicas, "broken": broken}, bindings)
    assert cel.compile("variables.replicas == 3", environment).evaluate({**bindings, "variables": variables}) is True
    with pytest.raises(cel.EvaluationError, match="division by zero"):
        cel.compile("variables.broken == 1", environment).evaluate({**bindings, "variables": variables})
    with pytest.raises(cel.CompileError, match="undefined field 'other'"):
        cel.compile("variables.other == 1", environment)


def test_the_authorizer_is_asked_what_the_chain_describes() -> None:
    asked: list[Request] = []

    def decide(request: Request) -> Decision:
        asked.append(request)
        return Decision(allowed=request.verb == "create", reason="because")

    program = cel.compile(
        "authorizer.group('apps').resource('deployments').namespace('ns').name('web').check('create').allowed()"
        " && authorizer.serviceAccount('ns', 'sa').path('/healthz').check('get').reason() == 'because'",
        cel.environments.admission(),
    )
    assert program.evaluate({"authorizer": Authorizer(decide)}) is True
    assert asked == [
        Request(verb="create", group="apps", resource="deployments", namespace="ns", name="web"),
        Request(verb="get", path="/healthz", service_account=("ns", "sa")),
    ]


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("authorizer.path(' ').check('get').allowed()", "path must not be empty"),
        ("authorizer.group('').resource('').check('get').allowed()", "resource must not be empty"),
        ("authorizer.serviceAccount('ns', 'A').path('/x').check('get').allowed()", "Invalid service account name"),
        ("authorizer.serviceAccount('a.b', 'sa').path('/x').check('get').allowed()", "must not contain dots"),
        (" && ".join(["authorizer.path('/x').check('get').allowed()"] * 3), "cost limit exceeded"),
    ],
)
def test_what_the_authorizer_cannot_be_asked(expression: str, message: str) -> None:
    program = cel.compile(expression, cel.environments.admission())
    with pytest.raises(cel.EvaluationError, match=message):
        program.evaluate({"authorizer": Authorizer(lambda request: Decision(allowed=True))})


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("cel.bind(x, 1, x == 1)", "undeclared reference to 'cel'"),
        ("duration('1d') > duration('1h')", "invalid duration argument"),
        ("timestamp('2024-02-30T00:00:00Z') < timestamp(0)", "invalid timestamp argument"),
        ("'a'.find('(') == ''", "invalid find argument"),
        ("math.abs(-1) == 1", "undeclared reference"),
    ],
)
def test_what_only_the_standard_environment_accepts_is_refused(expression: str, message: str) -> None:
    cel.compile(expression, cel.environments.standard())
    with pytest.raises(cel.CompileError) as refused:
        cel.compile(expression, cel.environments.admission())
    assert message in str(refused.value)


def test_a_mutating_policy_builds_objects_and_patches() -> None:
    environment = cel.environments.admission(mutating=True, result=None)
    apply = cel.compile("Object{metadata: Object.metadata{labels: {'a': object.name}}}", environment)
    assert apply.evaluate({"object": {"name": "n"}}) == {"metadata": {"labels": {"a": "n"}}}
    patch = cel.compile("[JSONPatch{op: 'add', path: '/a/' + jsonpatch.escapeKey('x/y'), value: 1}]", environment)
    assert patch.evaluate({}) == [{"op": "add", "path": "/a/x~1y", "value": 1}]
    with pytest.raises(cel.CompileError, match="undefined field 'oops'"):
        cel.compile("JSONPatch{oops: 1}", environment)


def test_functions_come_with_the_kubernetes_version() -> None:
    cel.compile("[2, 1].sort() == [1, 2]", cel.environments.device_selector((1, 34)))
    with pytest.raises(cel.CompileError, match="undeclared reference to 'sort'"):
        cel.compile("[2, 1].sort() == [1, 2]", cel.environments.device_selector((1, 33)))
    with pytest.raises(cel.CompileError, match="undeclared reference to 'sortBy'"):
        cel.compile("[2, 1].sortBy(x, x) == [1, 2]", cel.environments.device_selector((1, 33)))
    cel.compile("[2, 1].includes(1)", cel.environments.admission(version=(1, 37)))
    with pytest.raises(cel.CompileError, match="undeclared reference to 'includes'"):
        cel.compile("[2, 1].includes(1)", cel.environments.admission(version=(1, 36)))
    with pytest.raises(cel.CompileError, match="undeclared reference to 'includes'"):
        cel.compile("device.attributes['a'].b.includes('x')", cel.environments.device_selector((1, 35)))


def test_zones_need_nothing_of_the_system() -> None:
    before = zoneinfo.TZPATH
    zoneinfo.reset_tzpath(to=[])
    try:
        zone = zoneinfo.ZoneInfo.no_cache("US/Central")
    finally:
        zoneinfo.reset_tzpath(to=before)
    assert str(datetime(2024, 7, 1, tzinfo=zone).utcoffset()) == "-1 day, 19:00:00"


def test_literals_of_kubernetes_environments_are_of_one_type() -> None:
    with pytest.raises(cel.CompileError, match="expected type 'int' but found 'string'"):
        cel.compile("[1, 'a'].size() == 2", cel.environments.device_selector())


def test_programs_are_compiled_once_per_source_and_environment() -> None:
    environment = cel.environments.admission()
    assert cel.environments.admission() is environment
    assert cel.compile("object.a == 1", environment) is cel.compile("object.a == 1", environment)


def test_all_rounds_of_a_rule_share_the_limit_of_its_estimate() -> None:
    """As API servers do: the estimate times what maxItems and maxProperties above the rule allow."""
    schema = {"type": "string", "maxLength": 1000}
    rule = "self.startsWith('x')"
    cel.compile(rule, cel.environments.crd_rule(schema, rounds=10_000))
    for rounds in (100_000, None):
        with pytest.raises(cel.CompileError, match="exceeds cost limit"):
            cel.compile("self.contains(self)", cel.environments.crd_rule(schema, rounds=rounds))
    cel.compile("self > 0", cel.environments.crd_rule({"type": "integer"}, rounds=None))
