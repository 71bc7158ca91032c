"""Whatever a document holds, lint answers with problems that name it; nothing crashes."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from capstan import blueprints

WORDS = st.sampled_from(
    ["name", "a", "values", "addons", "queues", "${values.x}", "${addon.y}", "gpu.mig", "1.0.0", "top", "base", "", "."]
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-2, 2), st.floats(allow_nan=False), WORDS),
    lambda below: st.one_of(st.lists(below, max_size=3), st.dictionaries(WORDS, below, max_size=3)),
    max_leaves=8,
)
MANIFEST = st.fixed_dictionaries(
    {
        "apiVersion": st.sampled_from(["v1", "resource.k8s.io/v1", "x.y/v1"]),
        "metadata": st.one_of(JSON, st.just({"name": "m"})),
    },
    optional={
        "kind": st.sampled_from(
            ["ConfigMap", "DeviceClass", "CustomResourceDefinition", "ValidatingAdmissionPolicy", "ConstraintTemplate"]
        ),
        "spec": JSON,
        "$patch": JSON,
    },
)
ADDON = st.fixed_dictionaries(
    {"name": st.sampled_from(["a", "b"])},
    optional={
        "builtin": st.one_of(st.sampled_from(sorted(blueprints.COMPONENTS)), JSON),
        "values": st.one_of(
            JSON, st.dictionaries(st.sampled_from(["queues", "classes", "rules", "profiles", "namespaces"]), JSON)
        ),
        "dependsOn": JSON,
        "enabled": JSON,
        "files": JSON,
        "manifests": st.one_of(JSON, st.lists(MANIFEST, max_size=2)),
    },
)
ADDONS = st.one_of(JSON, st.lists(st.one_of(ADDON, JSON), max_size=3))
VARIANT = st.fixed_dictionaries({"name": WORDS}, optional={"when": JSON, "values": JSON, "addons": ADDONS})
SPEC = st.one_of(
    JSON,
    st.fixed_dictionaries(
        {"version": st.just("1.0.0")},
        optional={
            "values": JSON,
            "addons": ADDONS,
            "variants": st.one_of(JSON, st.lists(VARIANT, max_size=2)),
            "locked": st.one_of(JSON, st.lists(st.sampled_from(["values", "addons.a", "values.x"]), max_size=2)),
            "extends": WORDS,
            "mixins": JSON,
        },
    ),
)


def document(spec: Any, name: str) -> blueprints.Source:
    body = {
        "apiVersion": "platform.capstan.dev/v1alpha1",
        "kind": "Blueprint",
        "metadata": {"name": name},
        "spec": spec,
    }
    assert isinstance(blueprints.attachments(body), list)
    return blueprints.Source(f"{name}.yaml", body)


@given(SPEC, SPEC, JSON)
@settings(deadline=None, max_examples=150)
def test_lint_never_crashes_and_problems_name_their_file(top: Any, base: Any, override: Any) -> None:
    library = blueprints.Library([document(top, "top"), document(base, "base")])
    overrides = [blueprints.Override("c", override, "c.yaml")] if isinstance(override, dict) else []
    problems = blueprints.lint(library, overrides)
    assert all(problem.file in ("top.yaml", "base.yaml", "c.yaml") for problem in problems)
    assert all(problem.message and problem.object for problem in problems)


@given(st.lists(ADDON, max_size=3), JSON)
@settings(deadline=None, max_examples=150)
def test_what_lint_accepts_compiles_and_what_it_refuses_does_not(addons: Any, values: Any) -> None:
    spec = {"version": "1.0.0", "addons": addons, "values": values if isinstance(values, dict) else {}}
    library = blueprints.Library([document(spec, "top")])
    problems = blueprints.lint(library)
    try:
        compiled = blueprints.compile(library.layers("top"), {"gpu": {"count": 0}})
    except blueprints.BlueprintError as error:
        assert set(error.problems) <= set(problems)
    else:
        assert problems == []
        assert all(blueprints.identity(item.manifest) == item.identity for item in compiled.items)
