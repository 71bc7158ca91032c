"""Layers, variants, locks, references, components, order and digest: what a blueprint means for a cluster."""

from __future__ import annotations

import copy
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstan import blueprints, cel
from capstan.api import manifests
from capstan.api.scheduling import RuntimeClass
from capstan.blueprints.components.policies import CATALOGUE
from capstan.blueprints.resolve import resolve

A100: dict[str, Any] = {
    "kubernetes": {"version": "v1.36.0"},
    "gpu": {"product": ["NVIDIA A100-SXM4-40GB"], "count": 16, "mig": True, "memory": 40},
    "isolation": ["vfio"],
    "labels": {"region": "eu"},
}
L4: dict[str, Any] = {
    "kubernetes": {"version": "v1.34.2"},
    "gpu": {"product": ["NVIDIA L4"], "count": 4, "mig": False, "memory": 22},
    "isolation": [],
    "labels": {},
}


def blueprint(name: str, spec: str) -> blueprints.Source:
    document = {
        "apiVersion": "platform.capstan.dev/v1alpha1",
        "kind": "Blueprint",
        "metadata": {"name": name},
        "spec": (manifests.load_all(spec) or [{}])[0],
    }
    return blueprints.Source(f"{name}.yaml", document)


def library(**specs: str) -> blueprints.Library:
    return blueprints.Library(blueprint(name, spec) for name, spec in specs.items())


def compiled(
    lib: blueprints.Library, name: str, facts: dict[str, Any] = A100, override: dict[str, Any] | None = None
) -> blueprints.Compiled:
    body = None if override is None else blueprints.Override("c1", override, "clusters.yaml")
    return blueprints.compile(lib.layers(name), facts, body)


def data(result: blueprints.Compiled, name: str = "c") -> dict[str, Any]:
    """The data of a ConfigMap of the result."""
    (found,) = [item.manifest for item in result.items if item.identity == f"ConfigMap/default/{name}"]
    content: dict[str, Any] = found["data"]
    return content


def config_map(values: dict[str, Any], name: str = "c") -> str:
    """A ConfigMap as JSON, which is YAML too."""
    metadata = {"name": name, "namespace": "default"}
    return json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": values})


def problems_of(lib: blueprints.Library, *overrides: blueprints.Override) -> list[str]:
    return [str(problem) for problem in blueprints.lint(lib, overrides)]


# Precedence

LAYERS = ("base", "mixin", "child", "variant", "override")
EVERY_LAYER = {
    "base": f"""
        values: {{base: base, mixin: base, child: base, variant: base, override: base}}
        addons: [{{name: a, manifests: [{config_map({name: f"${{values.{name}}}" for name in LAYERS})}]}}]
        """,
    "mixin": "values: {mixin: mixin, child: mixin, variant: mixin, override: mixin}",
    "top": """
        version: 1.0.0
        extends: base
        mixins: [mixin]
        values: {child: child, variant: child, override: child}
        variants:
        - name: big
          when: {gpu.mig: true}
          values: {variant: variant, override: variant}
        """,
}


def test_each_layer_overrides_those_below_it() -> None:
    result = compiled(library(**EVERY_LAYER), "top", A100, {"values": {"override": "override"}})
    assert data(result) == {name: name for name in LAYERS}


def test_explain_names_every_layer_that_set_a_value_and_the_one_that_won() -> None:
    result = compiled(library(**EVERY_LAYER), "top", A100, {"values": {"override": "override"}})
    path = blueprints.parse_path("values.override")
    assert path is not None
    assert [(s.layer, s.value, s.effective) for s in blueprints.explain(result.resolved, path)] == [
        ("base base (base.yaml)", "base", False),
        ("mixin mixin (mixin.yaml)", "mixin", False),
        ("blueprint top (top.yaml)", "child", False),
        ("variant big (top.yaml)", "variant", False),
        ("override c1 (clusters.yaml)", "override", True),
    ]


def test_explain_follows_a_reference_to_the_values_it_reads() -> None:
    result = compiled(library(**EVERY_LAYER), "top")
    path = ("addons", "a", "manifests", "ConfigMap/default/c", "data", "child")
    settings_ = blueprints.explain(result.resolved, path)
    assert [(s.path, s.value) for s in settings_ if s.effective] == [
        ("addons.a.manifests[ConfigMap/default/c].data.child", "${values.child}"),
        ("values.child", "child"),
    ]


def test_a_value_that_names_itself_is_a_problem_and_can_still_be_explained() -> None:
    lib = library(top="{version: 1.0.0, values: {v: '${values.v}'}}")
    assert "${values.v} has no value" in problems_of(lib)[0]
    problems: list[blueprints.Problem] = []
    resolved = resolve(lib.layers("top"), "", None, problems)
    assert [each.value for each in blueprints.explain(resolved, ("values", "v"))] == ["${values.v}"]


def test_maps_merge_null_deletes_and_lists_replace() -> None:
    lib = library(
        base=f"addons: [{{name: a, manifests: [{config_map({'x': 1, 'y': 2})}], values: {{l: [1, 2]}}}}]",
        top=f"{{version: 1.0.0, extends: base, addons: [{{name: a, manifests: [{config_map({'x': None, 'z': 3})}]}}]}}",
    )
    assert data(compiled(lib, "top")) == {"y": 2, "z": 3}


def test_a_manifest_is_deleted_by_directive_and_an_add_on_by_disabling_it() -> None:
    lib = library(
        base=f"""
            addons:
            - {{name: a, manifests: [{config_map({}, "x")}, {config_map({}, "y")}]}}
            - {{name: b, manifests: [{config_map({}, "z")}]}}
            """,
        top="""
            version: 1.0.0
            extends: base
            addons:
            - {name: a, manifests: [{apiVersion: v1, kind: ConfigMap, metadata: {name: x, namespace: default},
                                     $patch: delete}]}
            - {name: b, enabled: false}
            """,
    )
    assert [item.identity for item in compiled(lib, "top").items] == ["ConfigMap/default/y"]


def test_a_diamond_of_bases_is_applied_once() -> None:
    lib = library(root="values: {v: 1}", left="extends: root", right="extends: root", top="mixins: [left, right]")
    assert [layer.name for layer in lib.layers("top")] == ["root", "left", "right", "top"]


# Variants

VARIANTS = f"""
    version: 1.0.0
    addons: [{{name: a, manifests: [{config_map({"v": "${values.v}"})}]}}]
    values: {{v: none}}
    variants:
    - {{name: mig, when: {{gpu.mig: true}}, values: {{v: mig}}}}
    - {{name: mig-eu, when: {{gpu: {{mig: true}}, labels.region: eu}}, values: {{v: mig-eu}}}}
    - {{name: slicing, when: {{gpu.product: ["*L4*", "*L40*"]}}, values: {{v: slicing}}}}
    """


@pytest.mark.parametrize(
    ("facts", "variant"),
    [
        (A100, "mig-eu"),
        ({**A100, "labels": {}}, "mig"),
        (L4, "slicing"),
        ({"kubernetes": {"version": "v1.36.0"}, "gpu": {"count": 0}}, ""),
    ],
)
def test_the_variant_with_the_most_matching_facts_wins(facts: dict[str, Any], variant: str) -> None:
    result = compiled(library(top=VARIANTS), "top", facts)
    assert result.variant == variant
    assert data(result) == {"v": variant or "none"}


def test_a_tie_is_an_error_that_names_both() -> None:
    variants = "[{name: a, when: {gpu.mig: true}}, {name: b, when: {labels.region: eu}}]"
    lib = library(top=f"{{version: 1.0.0, variants: {variants}}}")
    with pytest.raises(blueprints.BlueprintError) as caught:
        compiled(lib, "top", A100)
    assert "the variants a and b both match this cluster with 1 facts" in str(caught.value)


def test_a_blueprint_adds_to_the_variant_of_its_base() -> None:
    lib = library(base=VARIANTS, top="{version: 2.0.0, extends: base, variants: [{name: mig-eu, values: {v: more}}]}")
    assert data(compiled(lib, "top", A100)) == {"v": "more"}


@pytest.mark.parametrize(
    ("term", "value", "holds"),
    [
        ("kubernetes.version", ">=1.34", True),
        ("kubernetes.version", ">=1.34 <1.36", False),
        ("kubernetes.version", "1.36", True),
        ("kubernetes.version", ["1.30", "1.36"], True),
        ("gpu.count", ">=8", True),
        ("gpu.count", 8, False),
        ("gpu.count", 16, True),
        ("gpu.memory", "<=39", False),
        ("gpu.product", "nvidia a100*", True),
        ("gpu.product", "A100", False),
        ("isolation", "vfio", True),
        ("isolation", ["kata", "vfio"], True),
        ("labels.region", "e?", True),
        ("labels.zone", "*", False),
        ("gpu.mig", False, False),
    ],
)
def test_terms(term: str, value: Any, holds: bool) -> None:
    from capstan.blueprints import facts

    assert facts.matches({term: value}, A100) is holds


def published(*devices: dict[str, Any]) -> blueprints.DeviceFacts:
    return blueprints.devices(msgspec.convert({"spec": {"devices": list(devices)}}, blueprints.SLICES.struct))


def test_facts_are_read_from_published_devices_in_either_spelling() -> None:
    a100 = published(
        {
            "attributes": {"type": {"string": "gpu"}, "productName": {"string": "A100"}, "index": {"int": 0}},
            "capacity": {"memory": {"value": "40Gi"}},
        },
        {"attributes": {"type": {"string": "mig"}}},
    )
    h100 = published(
        {
            "attributes": {
                "gpu.nvidia.com/type": {"string": "gpu"},
                "gpu.nvidia.com/productName": {"string": "H100"},
            },
            "capacity": {"gpu.nvidia.com/memory": {"value": "80Gi"}},
        },
        {"attributes": {"gpu.nvidia.com/type": {"string": "vfio"}}},
    )
    kata = RuntimeClass(handler="kata-qemu")
    assert blueprints.observe("v1.36.0", [a100, h100], [kata], {"region": "eu"}) == {
        "kubernetes": {"version": "v1.36.0"},
        "gpu": {"count": 2, "product": ["A100", "H100"], "mig": True, "memory": 80},
        "isolation": ["kata", "vfio"],
        "labels": {"region": "eu"},
    }


def test_without_devices_nothing_is_known_about_gpus() -> None:
    assert blueprints.observe("v1.36.0", [published()])["gpu"] == {"count": 0}


# Locks


def test_a_locked_value_stays_and_who_overrides_it_is_told() -> None:
    lib = library(
        base=f"""
            locked: [values.v]
            values: {{v: golden}}
            addons: [{{name: a, manifests: [{config_map({"v": "${values.v}"})}]}}]
            """,
        top="{version: 1.0.0, extends: base, values: {v: mine}}",
    )
    with pytest.raises(blueprints.BlueprintError) as caught:
        compiled(lib, "top")
    assert str(caught.value) == (
        'top.yaml: Blueprint top: values.v: overrides values.v, which base base (base.yaml) locks to "golden"; '
        "remove it here, or unlock it in base.yaml"
    )


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"values": {"a": {"b": 2}}}, "values.a.b"),
        ({"values": {"a": None}}, "values.a"),
        ({"values": {"a": "flat"}}, "values.a"),
        ({"values": {"a": {"b": {"c": 1}}}}, "values.a.b.c"),
    ],
)
def test_a_lock_holds_above_and_below_its_path(body: dict[str, Any], place: str) -> None:
    lib = library(top="{version: 1.0.0, locked: [values.a.b], values: {a: {b: 1, x: 1}}}")
    with pytest.raises(blueprints.BlueprintError, match="Cluster c1: ") as caught:
        compiled(lib, "top", A100, body)
    assert caught.value.problems[0].path == place


def test_the_same_value_and_neighbours_of_a_lock_are_free() -> None:
    lib = library(top="{version: 1.0.0, locked: [values.a.b], values: {a: {b: 1, x: 1}}}")
    compiled(lib, "top", A100, {"values": {"a": {"b": 1, "x": 2, "y": 3}}})


# References


def test_references_keep_their_type_and_are_printed_inside_of_text() -> None:
    content = {
        "n": "${values.n}",
        "text": "n=${values.n} ${facts.gpu.count}",
        "own": "${addon.own}",
        "map": "${values.map}",
        "shell": "${HOME} $${values.n}",
    }
    lib = library(
        top=f"""
            version: 1.0.0
            values: {{n: 3, map: {{k: v}}}}
            addons: [{{name: a, values: {{own: "${{values.n}}"}}, manifests: [{config_map(content)}]}}]
            """
    )
    assert data(compiled(lib, "top")) == {
        "n": 3,
        "text": "n=3 16",
        "own": 3,
        "map": {"k": "v"},
        "shell": "${HOME} ${values.n}",
    }


def test_a_missing_value_names_file_object_and_path() -> None:
    wanted = config_map({"v": "${values.x.y}"})
    lib = library(top=f"{{version: 1.0.0, addons: [{{name: a, manifests: [{wanted}]}}]}}")
    assert problems_of(lib) == [
        "top.yaml: Blueprint top: addons.a.manifests[ConfigMap/default/c].data.v: ${values.x.y} has no value; "
        "set x.y in the values of the blueprint"
    ]


# Order


def test_order_follows_kinds_and_dependencies() -> None:
    lib = library(
        top="""
        version: 1.0.0
        addons:
        - name: app
          dependsOn: [late]
          manifests:
          - {apiVersion: example.com/v1, kind: Widget, metadata: {name: w, namespace: ns}}
          - {apiVersion: v1, kind: Namespace, metadata: {name: other}}
        - name: late
          manifests:
          - {apiVersion: apps/v1, kind: Deployment, metadata: {name: d, namespace: ns}}
          - {apiVersion: v1, kind: ConfigMap, metadata: {name: c, namespace: ns}}
        - name: definitions
          manifests:
          - {apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, metadata: {name: widgets.example.com},
             spec: {group: example.com, names: {kind: Widget}}}
          - {apiVersion: v1, kind: Namespace, metadata: {name: ns}}
        """
    )
    assert [item.identity for item in compiled(lib, "top").items] == [
        "Namespace/ns",
        "CustomResourceDefinition.apiextensions.k8s.io/widgets.example.com",
        "ConfigMap/ns/c",
        "Deployment.apps/ns/d",
        "Namespace/other",
        "Widget.example.com/ns/w",
    ]


# Problems, all at once


def test_lint_reports_everything_at_once() -> None:
    lib = library(
        top="""
            version: "1.0"
            extends: nowhere
            locked: ["metadata.name"]
            addons:
            - {name: a, builtn: queues}
            - {name: a2, files: [missing.yaml]}
            variants:
            - {name: v, when: {gpu.colour: green}}
            """,
        ring1="extends: ring2",
        ring2="mixins: [ring1]",
    )
    found = problems_of(lib)
    assert found == [
        "top.yaml: Blueprint top: spec.version: '1.0' is not a semantic version; write major.minor.patch, for example "
        "1.4.0",
        "top.yaml: Blueprint top: spec.locked[0]: 'metadata.name' is not a path; write values.<name> or "
        "addons.<add-on>.values.<name>",
        "top.yaml: Blueprint top: spec.addons[a]: object contains unknown field `builtn`",
        "top.yaml: Blueprint top: spec.addons[a2].files: missing.yaml was not found; paths are relative to top.yaml",
        "top.yaml: Blueprint top: spec.variants[v].when: unknown fact 'gpu.colour'; use one of gpu.count, gpu.memory, "
        "gpu.mig, gpu.product, isolation, kubernetes.version, or labels.<key>",
        "top.yaml: Blueprint top: spec.extends: unknown blueprint 'nowhere'; known are: ring1, ring2; add the file "
        "that defines it",
        "ring1.yaml: Blueprint ring1: spec.extends: layers form a cycle: ring1 -> ring2 -> ring1; remove one of these "
        "extends or mixins",
        "ring2.yaml: Blueprint ring2: spec.extends: layers form a cycle: ring2 -> ring1 -> ring2; remove one of these "
        "extends or mixins",
    ]


@pytest.mark.parametrize(
    ("addons", "message"),
    [
        ("[{name: a, builtin: queus}]", "addons.a.builtin: unknown component 'queus'; Capstan has: queues, "),
        ("[{name: a}]", "addons.a: has no content; state builtin, manifests or files"),
        (
            "[{name: a, builtin: priority-classes, dependsOn: [b]}]",
            "addons.a.dependsOn: depends on 'b', which is not an add-on; add-ons are: a",
        ),
        (
            "[{name: a, builtin: priority-classes, dependsOn: [b]}, {name: b, enabled: false}]",
            "addons.a.dependsOn: depends on 'b', which is disabled; enable b or drop the dependency",
        ),
        (
            "[{name: a, builtin: priority-classes, dependsOn: [b]}, {name: b, builtin: namespaces, dependsOn: [a],"
            " values: {namespaces: {}}}]",
            "addons: add-ons depend on each other: a -> b -> a; remove one dependsOn of the cycle",
        ),
        (
            f"[{{name: a, manifests: [{config_map({})}]}}, {{name: b, manifests: [{config_map({})}]}}]",
            "addons.b: ConfigMap/default/c is also in the add-on a; remove one of the two",
        ),
        (
            "[{name: a, manifests: [{apiVersion: v1, kind: Pod, metadata: {}}]}]",
            "manifests[0].metadata.name: missing; objects of a blueprint have fixed names",
        ),
        (
            "[{name: a, builtin: queues, values: {queues: {q: {gpu: {quota: many}}}}}]",
            "addons.a.values.queues[...].gpu.quota: expected `float | null`, got `str`",
        ),
        (
            "[{name: a, builtin: queues, values: {queues: {q: {parent: p}}}}]",
            "addons.a.values.queues.q.parent: the parent queue 'p' is missing; add it, or list it under existing",
        ),
        (
            "[{name: a, builtin: queues, values: {queues: {q: {parent: r}, r: {parent: q}}}}]",
            "queues form a cycle: q -> r -> q",
        ),
        (
            "[{name: a, builtin: queues, values: {queues: {q: {gpu: {quota: 4, limit: 2}}}}}]",
            "addons.a.values.queues.q.gpu.limit: the limit 2 is below the quota 4",
        ),
        (
            "[{name: a, builtin: mig-layout, values: {profiles: [1g]}}]",
            "addons.a.values.profiles.0: '1g' is not a MIG profile",
        ),
        (
            "[{name: a, builtin: device-classes, values: {classes: {c: {type: vfio, sharing: {strategy: MPS}}}}}]",
            "addons.a.values.classes.c.sharing: a device that is passed through cannot be shared; remove sharing",
        ),
        (
            "[{name: a, builtin: device-classes, values: {classes: {c: {expression: 'device.('}}}}]",
            "DeviceClass.resource.k8s.io/c: spec.selectors[0].cel.expression: ",
        ),
        (
            "[{name: a, builtin: policies, values: {rules: {r: {fromCatalogue: nothing}}}}]",
            "addons.a.values.rules.r.fromCatalogue: unknown rule 'nothing'; take one of no-admin-access",
        ),
        (
            "[{name: a, builtin: policies, values: {rules: {r: {expression: object.(}}}}]",
            "spec.validations[0].expression: ",
        ),
    ],
)
def test_problems_name_the_place_and_what_to_do(addons: str, message: str) -> None:
    (problem,) = problems_of(library(top=f"{{version: 1.0.0, addons: {addons}}}"))
    assert message in problem


def test_lint_compiles_every_variant_with_every_override() -> None:
    lib = library(
        top="""
        version: 1.0.0
        locked: [values.x]
        values: {x: 1}
        variants:
        - {name: broken, when: {gpu.mig: true}, addons: [{name: a, builtin: nope}]}
        """
    )
    found = problems_of(lib, blueprints.Override("c9", {"values": {"x": 2}}, "c9.yaml"))
    assert sorted(text.split(":")[0] for text in found) == ["c9.yaml", "top.yaml"]


def test_variants_that_cannot_be_told_apart_are_found_without_a_cluster() -> None:
    variants = "[{name: a, when: {gpu.mig: true}}, {name: b, when: {gpu: {mig: true}}}]"
    (problem,) = problems_of(library(top=f"{{version: 1.0.0, variants: {variants}}}"))
    assert "spec.variants: the variants a and b match the same clusters; tell them apart in `when`" in problem


def test_a_range_of_the_base_is_checked() -> None:
    lib = library(base="version: 1.4.2", top="{version: 1.0.0, extends: base@>=2}")
    assert "base has 1.4.2, which is not in '>=2'" in problems_of(lib)[0]
    assert not problems_of(library(base="version: 1.4.2", top="{version: 1.0.0, extends: base@>=1.4 <2}"))


def test_a_queue_above_others_is_unlimited_unless_it_says_otherwise() -> None:
    queues = "{company: {}, strict: {gpu: {quota: 2}}, a: {parent: company, gpu: {quota: 4}}, b: {parent: strict}}"
    lib = library(top=f"{{version: 1.0.0, addons: [{{name: q, builtin: queues, values: {{queues: {queues}}}}}]}}")
    made = {
        item.manifest["metadata"]["name"]: item.manifest["spec"]["resources"] for item in compiled(lib, "top").items
    }
    assert [made[name]["gpu"]["quota"] for name in ("company", "strict", "a", "b")] == [-1, 2, 4, 0]
    assert made["company"]["cpu"]["quota"] == made["strict"]["cpu"]["quota"] == -1


# Publishing


def test_a_published_version_compiles_to_the_same_digest_and_shows_tampering() -> None:
    lib = library(**EVERY_LAYER)
    version = blueprints.published(lib, "top")
    assert version["metadata"] == {"name": "top-1.0.0"}
    again = blueprints.compile(blueprints.layers_of(version["spec"]), A100)
    assert again.digest == compiled(lib, "top").digest
    tampered = copy.deepcopy(version["spec"])
    tampered["layers"][0]["values"]["base"] = "evil"
    with pytest.raises(blueprints.BlueprintError, match="it was changed after it was published"):
        blueprints.layers_of(tampered)


def test_only_sound_blueprints_with_a_version_are_published() -> None:
    with pytest.raises(blueprints.BlueprintError, match="cannot be published without a version"):
        blueprints.published(library(top="values: {}"), "top")
    with pytest.raises(blueprints.BlueprintError, match="unknown component"):
        blueprints.published(library(top="{version: 1.0.0, addons: [{name: a, builtin: x}]}"), "top")


SCALARS = st.one_of(st.integers(-5, 5), st.booleans(), st.sampled_from(["x", "y"]))
VALUES = st.dictionaries(st.sampled_from("abc"), st.one_of(SCALARS, st.dictionaries(st.sampled_from("de"), SCALARS)))


@given(VALUES, VALUES, VALUES)
@settings(deadline=None)
def test_compiling_is_a_function_of_layers_and_facts(base: Any, child: Any, override: Any) -> None:
    layers = [
        blueprints.Layer(name="base", role="base", values=base),
        blueprints.Layer(name="top", values=child, version="1.0.0"),
    ]
    before = copy.deepcopy((base, child, override))
    once = blueprints.compile(layers, A100, blueprints.Override("c", {"values": override}))
    again = blueprints.compile(layers, A100, blueprints.Override("c", {"values": override}))
    assert once == again
    assert (base, child, override) == before
    for name, value in once.resolved.tree["values"].items():
        settings_ = blueprints.explain(once.resolved, ("values", name))
        assert settings_[-1].effective
        if not isinstance(value, dict):
            assert settings_[-1].value == value


@pytest.mark.parametrize(
    ("component", "values", "identities"),
    [
        ("priority-classes", {}, ["train", "build-preemptible", "build", "inference"]),
        ("runtime-classes", {"classes": {"kata": {"handler": "kata-qemu", "overhead": {"cpu": "1"}}}}, ["kata"]),
        ("namespaces", {"namespaces": {"n": {"podSecurity": "restricted"}}}, ["n"]),
        ("mig-layout", {"profiles": ["1g.5gb", "1g.10gb+me"]}, ["mig-1g.5gb", "mig-1g.10gb-me"]),
        ("policies", {"rules": {"r": {"fromCatalogue": "require-queue", "action": "Warn"}}}, ["r", "r"]),
    ],
)
def test_components_render(component: str, values: dict[str, Any], identities: list[str]) -> None:
    rendered = blueprints.COMPONENTS[component].render(values)
    assert [manifest["metadata"]["name"] for manifest in rendered] == identities


def test_a_shared_class_carries_the_config_of_the_driver() -> None:
    classes = {"shared": {"sharing": {"strategy": "TimeSlicing", "interval": "Short"}, "product": "NVIDIA L4"}}
    (device_class,) = blueprints.COMPONENTS["device-classes"].render({"classes": classes})
    attributes = "device.attributes['gpu.nvidia.com']"
    expression = (
        f"device.driver == 'gpu.nvidia.com' && {attributes}.type == 'gpu' && {attributes}.productName == 'NVIDIA L4'"
    )
    parameters = {
        "apiVersion": "resource.nvidia.com/v1beta1",
        "kind": "GpuConfig",
        "sharing": {"strategy": "TimeSlicing", "timeSlicingConfig": {"interval": "Short"}},
    }
    assert device_class["spec"] == {
        "selectors": [{"cel": {"expression": expression}}],
        "config": [{"opaque": {"driver": "gpu.nvidia.com", "parameters": parameters}}],
    }


def pod(**spec: Any) -> dict[str, Any]:
    return {"metadata": {}, "spec": {"containers": [{"name": "c", **spec.pop("container", {})}], **spec}}


GPU_LIMIT = {"resources": {"limits": {"nvidia.com/gpu": "1"}}}
ADMIN = {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "c", "adminAccess": True}}]}}
USER = {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "c"}}, {"firstAvailable": []}]}}


@pytest.mark.parametrize(
    ("rule", "body", "allowed"),
    [
        ("no-privileged", pod(), True),
        ("no-privileged", pod(container={"securityContext": {"privileged": True}}), False),
        ("no-privileged", pod(initContainers=[{"name": "i", "securityContext": {"privileged": True}}]), False),
        ("no-gpu-host-paths", pod(volumes=[{"name": "v", "hostPath": {"path": "/data"}}]), True),
        ("no-gpu-host-paths", pod(volumes=[{"name": "v", "hostPath": {"path": "/dev/nvidia0"}}]), False),
        ("no-visible-devices", pod(container={"env": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"}]}), True),
        ("no-visible-devices", pod(container={"env": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}]}), False),
        ("require-queue", pod(), True),
        ("require-queue", pod(container=GPU_LIMIT), False),
        ("require-queue", pod(container=GPU_LIMIT) | {"metadata": {"labels": {"kai.scheduler/queue": "q"}}}, True),
        ("require-queue", pod(resourceClaims=[{"name": "gpu"}]), False),
        ("no-admin-access", {"metadata": {}, "spec": USER}, True),
        ("no-admin-access", {"metadata": {}, "spec": ADMIN}, False),
        ("no-admin-access", {"metadata": {}, "spec": {"spec": ADMIN}}, False),
    ],
)
def test_ready_rules_decide(rule: str, body: dict[str, Any], allowed: bool) -> None:
    program = cel.compile(CATALOGUE[rule].expression, cel.environments.admission())
    assert program.evaluate({"object": body, "oldObject": None, "request": {}, "params": None}) is allowed
