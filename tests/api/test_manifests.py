import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from capstan.api import manifests
from capstan.api.manifests import InvalidManifest


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 12:30:45", "12:30:45"),
        ("a: 2001-01-01", "2001-01-01"),
        ("a: 010", 8),
        ("a: 0x10", 16),
        ("a: 1e3", 1000.0),
        ("a: 1.5", 1.5),
        ("a: yes", True),
        ("a: 1Gi", "1Gi"),
        ("a: ~", None),
        ('a: "1"', "1"),
    ],
)
def test_scalars_are_read_as_kubernetes_reads_them(text, value):
    assert manifests.load_all(text) == [{"a": value}]


def test_a_key_that_is_no_text_becomes_text():
    assert manifests.load_all("1: x\ntrue: y") == [{"1": "x", "true": "y"}]


def test_anchors_and_merge_keys_work():
    assert manifests.load_all("a: &x {b: 1}\nc: {<<: *x, d: 2}") == [{"a": {"b": 1}, "c": {"b": 1, "d": 2}}]


def test_a_key_twice_names_its_line():
    with pytest.raises(InvalidManifest, match=r"pod.yaml: line 2, column 1: the key 'a' stands twice"):
        manifests.load_all("a: 1\na: 2", "pod.yaml")


@pytest.mark.parametrize("number", [".nan", ".inf", "-.Inf", "1e400"])
def test_numbers_that_json_cannot_carry_are_refused(number):
    with pytest.raises(InvalidManifest, match=r"q.yaml: line 2, column 8: .* is no number that JSON can carry"):
        manifests.load_all(f"a: 1\nquota: {number}", "q.yaml")


def test_lists_are_unfolded_and_empty_documents_skipped():
    text = "---\n---\nkind: List\napiVersion: v1\nitems: [{apiVersion: v1, kind: Pod}, {apiVersion: v1, kind: Node}]"
    assert [m["kind"] for m in manifests.load_manifests(text)] == ["Pod", "Node"]


@pytest.mark.parametrize("text", ["[]", "kind: Pod", "apiVersion: v1", "a", "{apiVersion: v1, kind: Pod, metadata: 3}"])
def test_what_is_no_object_is_refused_by_document(text):
    with pytest.raises(InvalidManifest, match=r"f.yaml: document 1"):
        manifests.load_manifests(text, "f.yaml")


def test_a_billion_laughs_is_refused():
    laughs = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
    with pytest.raises(InvalidManifest, match="more than 1000000 values"):
        manifests.load_all(laughs)


def test_deep_nesting_is_an_error():
    for text in ("[" * 100_000, '{"a":' * 100_000, "".join(" " * i + "a:\n" for i in range(300))):
        with pytest.raises(InvalidManifest):
            manifests.load_all(text)


@given(st.text(max_size=200))
@settings(deadline=None)
def test_any_text_is_read_or_refused(text):
    try:
        manifests.load_manifests(text)
    except InvalidManifest as error:
        assert str(error).startswith("input:")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(min_size=1, max_size=8), _JSON, max_size=5))
@example({"0": "0E0", "12:30:45": ["1e5", "010", "0o7", "yes", "~", ".nan"], "2001-01-01": 1e20})
@settings(deadline=None)
def test_what_is_dumped_is_read_back(value):
    assert manifests.load_all(manifests.dump(value)) == ([value] if value is not None else [])
