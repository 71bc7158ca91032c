"""Discovery documents: legacy lists and their aggregated form say the same."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan.local import discovery
from capstan.local.types import builtin_types

from .types_samples import kinds

AGGREGATED = (
    "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,"
    "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json"
)


def test_the_groups_prefer_their_best_version() -> None:
    groups = {entry["name"]: entry for entry in discovery.group_list(builtin_types())["groups"]}
    assert "" not in groups
    assert groups["resource.k8s.io"]["preferredVersion"]["version"] == "v1"
    assert [each["version"] for each in groups["resource.k8s.io"]["versions"]] == [
        "v1",
        "v1beta2",
        "v1beta1",
        "v1alpha3",
    ]


def test_subresources_name_the_kind_they_take() -> None:
    listed = discovery.resource_list(builtin_types(), "", "v1")
    assert listed is not None
    by_name = {entry["name"]: entry for entry in listed["resources"]}
    assert by_name["pods"]["shortNames"] == ["po"]
    assert (by_name["pods/eviction"]["group"], by_name["pods/eviction"]["kind"]) == ("policy", "Eviction")
    assert by_name["pods/status"]["kind"] == "Pod"
    assert discovery.resource_list(builtin_types(), "nothing.example.com", "v1") is None


def test_the_aggregated_form_lists_the_same_resources() -> None:
    served = list(kinds().values())
    seen = set()
    for core in (True, False):
        for group in discovery.aggregated(served, core=core)["items"]:
            for version in group["versions"]:
                for entry in version["resources"]:
                    seen.add((group["metadata"].get("name", ""), version["version"], entry["resource"]))
    assert seen == {(item.group, item.version, item.plural) for item in served}


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (AGGREGATED, "APIGroupDiscoveryList"),
        ("application/json", "APIGroupList"),
        ("", "APIGroupList"),
        ("application/json,application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList", "APIGroupList"),
        ("application/json;g=apidiscovery.k8s.io;v=v9;as=APIGroupDiscoveryList,application/json", "APIGroupList"),
    ],
)
def test_the_accept_header_decides(accept: str, kind: str) -> None:
    answer = discovery.respond("/apis", accept, builtin_types())
    assert answer is not None
    assert msgspec.json.decode(answer[0])["kind"] == kind
    assert ("as=APIGroupDiscoveryList" in answer[1]) == (kind == "APIGroupDiscoveryList")


def test_paths_that_lead_nowhere() -> None:
    for path in ("/apis/none", "/apis/apps/v9", "/api/v2", "/apis/apps/v1/more"):
        assert discovery.respond(path, "", builtin_types()) is None


def test_versions_sort_as_kubernetes_sorts_them() -> None:
    expected = ["v10", "v2", "v1", "v11beta2", "v10beta3", "v3beta1", "v12alpha1", "v11alpha2", "foo1", "foo10"]
    backwards = list(reversed(expected))
    assert sorted(backwards, key=discovery.version_key) == expected


@given(st.lists(st.from_regex(r"v[0-9]{1,2}((alpha|beta)[0-9])?|[a-z]{1,4}", fullmatch=True)))
def test_the_order_of_versions_is_total(names: list[str]) -> None:
    once = sorted(names, key=discovery.version_key)
    backwards = list(reversed(names))
    assert sorted(backwards, key=discovery.version_key) == once
