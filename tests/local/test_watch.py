"""Lists and watches: selections, pages that stay consistent, bookmarks, and what a compaction takes away."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstan import kube
from capstan.api import resources
from capstan.api.base import Object

MAPS = "/api/v1/namespaces/default/configmaps"
ALL_MAPS = "/api/v1/configmaps"
PODS = "/api/v1/namespaces/default/pods"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
PARTIAL = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"


def config_map(name: str, **labels: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": labels}, "data": {"x": "1"}}


def pod(name: str, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}], **spec}}


# lists


def test_a_list_states_its_kind_and_revision(api) -> None:
    assert api.get(MAPS)["items"] == []
    created = [api.create(MAPS, config_map(name)) for name in "ba"]
    body = api.get(MAPS)
    assert (body["kind"], body["apiVersion"]) == ("ConfigMapList", "v1")
    assert body["items"] == created[::-1]
    assert body["metadata"] == {"resourceVersion": str(api.server.store.revision)}


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("app=web", ["a", "b"]),
        ("app=web,tier=db", ["b"]),
        ("app!=web", ["c", "d"]),
        ("tier", ["b", "c"]),
        ("!app", ["d"]),
        ("app in (web,api),tier notin (db)", ["a"]),
    ],
)
def test_label_selectors(api, selector: str, names: list[str]) -> None:
    for name, labels in {
        "a": {"app": "web"},
        "b": {"app": "web", "tier": "db"},
        "c": {"app": "api", "tier": "db"},
    }.items():
        api.create(MAPS, config_map(name, **labels))
    api.create(MAPS, config_map("d"))
    assert api.names(f"{MAPS}?labelSelector={selector}") == names


def test_field_selectors(api) -> None:
    api.create(PODS, pod("a", nodeName="n1"))
    api.create(PODS, pod("b", nodeName="n2"))
    api.create(PODS, pod("c"))
    assert api.names(f"{PODS}?fieldSelector=spec.nodeName=n1") == ["a"]
    assert api.names(f"{PODS}?fieldSelector=spec.nodeName!=n1,status.phase=Pending") == ["b", "c"]
    assert api.names("/api/v1/pods?fieldSelector=metadata.name=b,metadata.namespace=default") == ["b"]
    assert api.names(f"{PODS}?fieldSelector=spec.nodeName=") == ["c"]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("labelSelector=a==b==c", "unable to parse requirement"),
        ("labelSelector=a in (", "unable to parse requirement"),
        ("fieldSelector=spec.color=red", "field label not supported: spec.color"),
        ("fieldSelector=nonsense", "can't understand 'nonsense'"),
        ("limit=-1", "limit"),
        ("continue=xx", "continue key is not valid"),
        ("resourceVersion=new", "must be a number"),
        ("resourceVersionMatch=Exact", "forbidden for resourceVersion"),
        ("resourceVersionMatch=Roughly&resourceVersion=1", "Unsupported value"),
    ],
)
def test_bad_list_parameters(api, query: str, message: str) -> None:
    code, reason, text = api.call("GET", f"{MAPS}?{query}").status
    assert (code, reason) == (400, "BadRequest")
    assert message in text


def test_exact_lists_show_the_past(api) -> None:
    api.create(MAPS, config_map("a"))
    then = api.get(MAPS)["metadata"]["resourceVersion"]
    api.create(MAPS, config_map("b"))
    api.call("DELETE", f"{MAPS}/a")
    exact = api.get(f"{MAPS}?resourceVersion={then}&resourceVersionMatch=Exact")
    assert [item["metadata"]["name"] for item in exact["items"]] == ["a"]
    assert exact["metadata"]["resourceVersion"] == then
    assert api.names(f"{MAPS}?resourceVersion={then}&resourceVersionMatch=NotOlderThan") == ["b"]
    api.server.store.compact()
    answer = api.call("GET", f"{MAPS}?resourceVersion={then}&resourceVersionMatch=Exact")
    assert answer.status[:2] == (410, "Expired")


# pages


def test_pages_show_one_moment_whatever_is_written_between_them(api) -> None:
    for name in "abcdef":
        api.create(MAPS, config_map(name))
    first = api.get(f"{MAPS}?limit=2")
    assert first["metadata"]["remainingItemCount"] == 4
    api.call("DELETE", f"{MAPS}/c")
    api.create(MAPS, config_map("bb"))
    api.patch(f"{MAPS}/d", {"data": {"x": "new"}})
    second = api.get(f"{MAPS}?limit=3&continue={first['metadata']['continue']}")
    third = api.get(f"{MAPS}?limit=3&continue={second['metadata']['continue']}")
    items = first["items"] + second["items"] + third["items"]
    assert [item["metadata"]["name"] for item in items] == list("abcdef")
    assert items[3]["data"] == {"x": "1"}
    assert {page["metadata"]["resourceVersion"] for page in (first, second, third)} == {
        first["metadata"]["resourceVersion"]
    }
    assert "continue" not in third["metadata"]


def test_pages_count_what_the_selector_leaves(api) -> None:
    for name in "abcdef":
        api.create(MAPS, config_map(name, even=str("abcdef".index(name) % 2 == 0)))
    first = api.get(f"{MAPS}?limit=2&labelSelector=even=True")
    assert [item["metadata"]["name"] for item in first["items"]] == ["a", "c"]
    assert "remainingItemCount" not in first["metadata"]
    rest = api.get(f"{MAPS}?limit=2&labelSelector=even=True&continue={first['metadata']['continue']}")
    assert [item["metadata"]["name"] for item in rest["items"]] == ["e"]


def test_a_page_whose_moment_is_gone_offers_the_inconsistent_rest(api) -> None:
    for name in "abcd":
        api.create(MAPS, config_map(name))
    token = api.get(f"{MAPS}?limit=2")["metadata"]["continue"]
    api.call("DELETE", f"{MAPS}/c")
    api.server.store.compact()
    answer = api.call("GET", f"{MAPS}?limit=2&continue={token}")
    assert answer.status[:2] == (410, "Expired")
    assert "The provided continue parameter is too old" in answer.body["message"]
    rest = api.get(f"{MAPS}?limit=2&continue={answer.body['metadata']['continue']}")
    assert [item["metadata"]["name"] for item in rest["items"]] == ["d"]


@settings(max_examples=25, deadline=None)
@given(
    names=st.sets(st.sampled_from("abcdefghij"), min_size=1),
    limit=st.integers(1, 4),
    writes=st.lists(st.tuples(st.sampled_from("abcdefghij"), st.booleans()), max_size=12),
)
def test_any_pages_under_any_writes_are_the_list_of_the_first_page(fresh_api, names, limit, writes) -> None:
    with fresh_api() as api:
        for name in sorted(names):
            api.create(MAPS, config_map(name))
        expected = api.get(MAPS)["items"]
        pending, found, token = list(writes), [], ""
        while True:
            page = api.get(f"{MAPS}?limit={limit}&continue={token}" if token else f"{MAPS}?limit={limit}")
            found += page["items"]
            token = page["metadata"].get("continue", "")
            if not token:
                break
            for name, create in pending[:2]:
                api.call("POST", MAPS, config_map(name)) if create else api.call("DELETE", f"{MAPS}/{name}")
            del pending[:2]
        assert found == expected


# forms


def test_tables_for_lists_and_single_objects(api) -> None:
    api.create(PODS, pod("a"))
    table = api.get(PODS, headers={"accept": TABLE})
    assert (table["kind"], table["apiVersion"]) == ("Table", "meta.k8s.io/v1")
    assert [column["name"] for column in table["columnDefinitions"]][:5] == [
        "Name",
        "Ready",
        "Status",
        "Restarts",
        "Age",
    ]
    assert table["rows"][0]["cells"][:3] == ["a", "0/1", "Pending"]
    assert table["rows"][0]["object"]["kind"] == "PartialObjectMetadata"
    assert table["metadata"]["resourceVersion"] == str(api.server.store.revision)
    single = api.get(f"{PODS}/a", headers={"accept": TABLE})
    assert [row["cells"][0] for row in single["rows"]] == ["a"]
    whole = api.get(f"{PODS}?includeObject=Object", headers={"accept": TABLE})
    assert whole["rows"][0]["object"]["spec"]["containers"][0]["image"] == "i"


def test_metadata_only(api) -> None:
    created = api.create(MAPS, config_map("a"))
    partial = api.get(MAPS, headers={"accept": PARTIAL})
    assert partial["kind"] == "PartialObjectMetadataList"
    assert partial["items"][0]["metadata"] == created["metadata"]
    assert "data" not in partial["items"][0]


# watches


def test_a_watch_from_a_revision_shows_all_that_came_after(api) -> None:
    api.create(MAPS, config_map("a"))
    since = api.get(MAPS)["metadata"]["resourceVersion"]
    api.create(MAPS, config_map("b"))
    watch = api.watch(f"{MAPS}?resourceVersion={since}")
    api.patch(f"{MAPS}/a", {"data": {"x": "2"}})
    api.call("DELETE", f"{MAPS}/b")
    events = watch.next(3)
    assert [(kind, item["metadata"]["name"]) for kind, item in events] == [
        ("ADDED", "b"),
        ("MODIFIED", "a"),
        ("DELETED", "b"),
    ]
    revisions = [int(item["metadata"]["resourceVersion"]) for _, item in events]
    assert revisions == sorted(revisions)
    assert revisions[-1] == api.server.store.revision
    watch.close()


def test_a_watch_without_a_revision_starts_with_what_is_there(api) -> None:
    api.create(MAPS, config_map("a"))
    watch = api.watch(MAPS)
    api.create(MAPS, config_map("b"))
    assert watch.names(2) == [("ADDED", "a"), ("ADDED", "b")]
    watch.close()


def test_a_watch_is_limited_to_its_namespace(api) -> None:
    api.create("/api/v1/namespaces", {"metadata": {"name": "other"}})
    here, everywhere = api.watch(MAPS), api.watch(ALL_MAPS)
    api.create("/api/v1/namespaces/other/configmaps", config_map("a"))
    api.create(MAPS, config_map("b"))
    assert here.names(1) == [("ADDED", "b")]
    assert everywhere.names(2) == [("ADDED", "a"), ("ADDED", "b")]
    here.close()
    everywhere.close()


def test_objects_enter_and_leave_a_selected_watch(api) -> None:
    watch = api.watch(f"{MAPS}?labelSelector=app=web")
    api.create(MAPS, config_map("a"))
    api.patch(f"{MAPS}/a", {"metadata": {"labels": {"app": "web"}}})
    api.patch(f"{MAPS}/a", {"data": {"x": "2"}})
    left = api.patch(f"{MAPS}/a", {"metadata": {"labels": {"app": "api"}}}).body
    api.call("DELETE", f"{MAPS}/a")
    api.create(MAPS, config_map("b", app="web"))
    events = watch.next(4)
    assert [kind for kind, _ in events] == ["ADDED", "MODIFIED", "DELETED", "ADDED"]
    gone = events[2][1]["metadata"]
    assert gone["labels"] == {"app": "web"}
    assert gone["resourceVersion"] == left["metadata"]["resourceVersion"]
    watch.close()


def test_a_node_sees_its_pods_come_and_go(api) -> None:
    watch = api.watch("/api/v1/pods?fieldSelector=spec.nodeName=n1")
    other = api.watch("/api/v1/pods?fieldSelector=spec.nodeName=n2,metadata.name=q")
    api.create(PODS, pod("p"))
    api.create(PODS, pod("q"))
    for name, node in (("p", "n1"), ("q", "n2")):
        api.create(f"{PODS}/{name}/binding", {"metadata": {"name": name}, "target": {"kind": "Node", "name": node}})
    api.call("DELETE", f"{PODS}/p", {"gracePeriodSeconds": 0})
    assert watch.names(2) == [("ADDED", "p"), ("DELETED", "p")]
    assert other.names(1) == [("ADDED", "q")]
    watch.close()
    other.close()


def test_versions_of_a_resource_are_watched_and_selected_each_in_its_own_shape(api) -> None:
    events = "/apis/events.k8s.io/v1/namespaces/default/events"
    core = "/api/v1/namespaces/default/events"
    mine = api.watch(f"{core}?fieldSelector=involvedObject.name=p&allowWatchBookmarks=true")
    theirs = api.watch(f"{events}?fieldSelector=regarding.name=p&allowWatchBookmarks=true")
    for name in ("p", "q"):
        about = {"kind": "Pod", "name": name, "namespace": "default"}
        body = {"metadata": {"name": f"{name}.1"}, "involvedObject": about, "reason": "Why", "type": "Normal"}
        api.create(core, body)
    api.server.reads.send_bookmarks()
    for watch, version, field in ((mine, "v1", "involvedObject"), (theirs, "events.k8s.io/v1", "regarding")):
        (added, mark) = watch.next(2)
        assert (added[0], added[1]["apiVersion"], added[1][field]["name"]) == ("ADDED", version, "p")
        assert (mark[0], mark[1]["apiVersion"]) == ("BOOKMARK", version)
        watch.close()
    assert api.names(f"{events}?fieldSelector=regarding.name=q") == ["q.1"]


def test_a_watch_from_before_the_floor_says_expired(api) -> None:
    api.create(MAPS, config_map("a"))
    api.create(MAPS, config_map("b"))
    api.server.store.compact()
    watch = api.watch(f"{MAPS}?resourceVersion=1")
    ((kind, body),) = watch.next(1)
    assert kind == "ERROR"
    assert (body["kind"], body["code"], body["reason"]) == ("Status", 410, "Expired")
    assert body["message"] == f"too old resource version: 1 ({api.server.store.floor})"
    assert watch.ended()


def test_an_open_watch_survives_a_compaction(api) -> None:
    watch = api.watch(MAPS)
    api.create(MAPS, config_map("a"))
    api.server.store.compact()
    api.create(MAPS, config_map("b"))
    assert watch.names(2) == [("ADDED", "a"), ("ADDED", "b")]
    watch.close()


def test_bookmarks_only_for_those_who_asked(api) -> None:
    asked, plain = api.watch(f"{MAPS}?allowWatchBookmarks=true"), api.watch(MAPS)
    api.create("/api/v1/namespaces", {"metadata": {"name": "elsewhere"}})
    api.server.reads.send_bookmarks()
    ((kind, body),) = asked.next(1)
    assert kind == "BOOKMARK"
    assert body == {
        "kind": "ConfigMap",
        "apiVersion": "v1",
        "metadata": {"resourceVersion": str(api.server.store.revision), "creationTimestamp": None},
    }
    api.create(MAPS, config_map("a"))
    assert plain.names(1) == [("ADDED", "a")]
    asked.close()
    plain.close()


def test_send_initial_events_ends_the_beginning_with_a_bookmark(api) -> None:
    api.create(MAPS, config_map("a"))
    query = "sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan"
    watch = api.watch(f"{MAPS}?{query}")
    (first, second) = watch.next(2)
    assert (first[0], first[1]["metadata"]["name"]) == ("ADDED", "a")
    assert second[0] == "BOOKMARK"
    assert second[1]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
    watch.close()
    answer = api.call("GET", f"{MAPS}?watch=1&sendInitialEvents=true")
    assert answer.status[:2] == (400, "BadRequest")


def test_a_watch_ends_after_its_timeout(api) -> None:
    watch = api.watch(f"{MAPS}?timeoutSeconds=1&allowWatchBookmarks=true")
    assert watch.next(1)[0][0] == "BOOKMARK"
    assert watch.ended()


def test_watch_events_in_the_form_that_was_asked_for(api) -> None:
    rows = api.watch(PODS, headers={"accept": TABLE})
    metadata = api.watch(PODS, headers={"accept": "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io"})
    api.create(PODS, pod("a"))
    ((kind, table),) = rows.next(1)
    assert (kind, table["kind"], table["rows"][0]["cells"][0]) == ("ADDED", "Table", "a")
    ((_, partial),) = metadata.next(1)
    assert partial["kind"] == "PartialObjectMetadata"
    assert set(partial) == {"kind", "apiVersion", "metadata"}
    rows.close()
    metadata.close()


def test_watchers_share_the_bytes_of_an_event(api) -> None:
    watches = [api.watch(MAPS) for _ in range(3)]
    api.create(MAPS, config_map("a"))
    frames = [api.run(anext(watch._chunks)) for watch in watches]
    assert frames[0][0] is frames[1][0] is frames[2][0]
    for watch in watches:
        watch.close()


def test_closing_the_server_ends_its_watches(api) -> None:
    watch = api.watch(MAPS)
    api.server.reads.close()
    assert watch.ended()


def test_readers_in_this_process_share_what_one_of_them_decoded(api) -> None:
    async def read() -> None:
        client = kube.Client(api.server.transport())
        whole: kube.Cache[Any] = kube.Cache(client, resources.PODS)
        metadata: kube.Cache[Any] = kube.Cache(client, msgspec.structs.replace(resources.PODS, struct=Object))
        tasks = []
        for cache in (whole, whole_again := kube.Cache(client, resources.PODS), metadata):
            tasks.append(asyncio.create_task(cache.run()))
            await cache.synced()
        version = (await client.create(resources.PODS, pod("p"), "default"))["metadata"]["resourceVersion"]
        for cache in (whole, whole_again, metadata):
            await cache.reached(version)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        found = whole.get("p", "default")
        assert found is not None and whole_again.get("p", "default") is found is metadata.get("p", "default")

    api.run(read())
