"""Filters mean what they mean in Haystack's InMemoryDocumentStore."""

import os
import warnings
from datetime import datetime, timedelta, timezone

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"

import numpy as np
import pytest

from duonlp.errors import InputError
from duonlp.retrieval import Document, MemoryStore, UnknownFieldWarning, matches
from duonlp.retrieval.filters import COMPARISONS, Columns, Filter

NAN = float("nan")
VALUES = [
    None, 0, 1, 2, -1, 1.0, 2.5, True, False, "a", "A", "", "1", "2024-01-01", "2024-01-01T00:00:00", "2024-01-01T00:00:00+02:00",
    "2023-12-31T24:00", "2024-13-01", "2024-06-30 12:00:00", "Jan 5 2024", "2025", [1, 2], [], {"a": 1}, NAN, 2**53 + 1, 2**60,
    datetime(2024, 1, 1), datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=2))), datetime(2020, 5, 17), (1, 2), "ß", "x" * 40,
]  # fmt: skip
FIELDS = [
    "meta.x",
    "x",
    "meta.y",
    "y",
    "meta.deep.z",
    "meta.deep",
    "id",
    "content",
    "meta.none",
    "meta.x.y",
    "nothing.x",
    "blob",
]


def random_documents(rng, count):
    documents = []
    for i in range(count):
        meta = {name: VALUES[rng.integers(len(VALUES))] for name in ("x", "y") if rng.random() < 0.8}
        if rng.random() < 0.5:
            meta["deep"] = (
                {"z": VALUES[rng.integers(len(VALUES))]} if rng.random() < 0.8 else VALUES[rng.integers(len(VALUES))]
            )
        documents.append(Document(f"text {i % 5}", meta, str(i)))
    return documents


def random_filter(rng, depth):
    if depth and rng.random() < 0.5:
        conditions = [random_filter(rng, depth - 1) for _ in range(rng.integers(0, 4))]
        return {"operator": str(rng.choice(["AND", "OR", "NOT"])), "conditions": conditions}
    operator = str(rng.choice(COMPARISONS))
    value = VALUES[rng.integers(len(VALUES))]
    if operator in ("in", "not in"):
        value = [VALUES[rng.integers(len(VALUES))] for _ in range(rng.integers(0, 4))]
    return {"field": str(rng.choice(FIELDS)), "operator": operator, "value": value}


def haystack_answer(filters, document):
    haystack = pytest.importorskip("haystack")
    from haystack.utils.filters import document_matches_filter

    theirs = haystack.Document(id=document.id, content=document.content, meta=document.meta)
    try:
        return document_matches_filter(filters, theirs)
    except Exception:
        return "error"


@pytest.mark.filterwarnings("ignore::duonlp.retrieval.UnknownFieldWarning")
def test_random_filters_match_the_documents_that_haystacks_do():
    rng, refused, errors, matched = np.random.default_rng(0), 0, 0, 0
    documents = random_documents(rng, 25)
    columns = Columns(documents)
    for _ in range(600):
        filters = random_filter(rng, 3)
        expected = [haystack_answer(filters, document) for document in documents]
        try:
            condition = Filter(filters)
        except InputError:  # a value that no document can be ordered by, which Haystack finds with the first document
            refused += 1
            continue
        if "error" in expected:
            errors += 1
            with pytest.raises(InputError):
                condition.mask(columns)
            assert condition.condition is not None
            outcomes = condition.condition.evaluate(columns)
            assert [{0: False, 1: True, 2: "error"}[int(o)] for o in outcomes] == expected, filters
        else:
            assert condition.mask(columns).tolist() == expected, filters
            matched += sum(expected)
    assert errors > 30 and matched > 500 and refused < 300


def test_one_document():
    document = Document("text", {"year": 2020, "day": "2024-01-02"})
    assert matches(None, document) and matches({}, document)
    assert matches({"field": "meta.year", "operator": ">=", "value": 2020}, document)
    assert matches({"field": "day", "operator": "<", "value": "2024-02-01"}, document)
    assert not matches({"field": "meta.month", "operator": "==", "value": 1}, document)
    assert matches({"field": "meta.month", "operator": "!=", "value": 1}, document)
    assert matches({"field": "embedding", "operator": "==", "value": None}, document)


@pytest.mark.parametrize(
    ("filters", "named"),
    [
        ("x", "'x'"),
        ([], "[]"),
        ({"field": "x", "operator": "=="}, "'value' is missing"),
        ({"field": "x", "value": 1}, "'operator' is missing"),
        ({"operator": "AND"}, "'conditions' is missing"),
        ({"x": 1}, "'operator' is missing"),
        ({"operator": "and", "conditions": []}, "did you mean 'AND'"),
        ({"operator": "AND", "conditions": {"field": "x"}}, "list of conditions"),
        ({"operator": "AND", "conditions": ["x"]}, "'x'"),
        ({"field": "x", "operator": "=", "value": 1}, "'='"),
        ({"field": 3, "operator": "==", "value": 1}, "field of a filter is 3"),
        ({"field": "x", "operator": "in", "value": "ab"}, "list of values"),
        ({"field": "x", "operator": ">", "value": "large"}, "'large'"),
        ({"field": "x", "operator": ">", "value": [1]}, "list"),
    ],
)
def test_malformed_filters_are_refused(filters, named):
    with pytest.raises(InputError) as error:
        MemoryStore().filter_documents(filters)
    assert named in str(error.value)


def test_a_deep_filter_is_an_input_error():
    filters = {"field": "x", "operator": "==", "value": 1}
    for _ in range(5000):
        filters = {"operator": "NOT", "conditions": [filters]}
    with pytest.raises(InputError, match="too deeply"):
        Filter(filters)


def test_a_value_that_cannot_be_compared_names_the_document():
    store = MemoryStore()
    store.write_documents([Document("a", {"size": 3}, "one"), Document("b", {"size": "large"}, "two")])
    with pytest.raises(InputError, match=r"'two' cannot be filtered: 'meta\.size' is 'large'"):
        store.filter_documents({"field": "meta.size", "operator": ">", "value": 1})


def test_a_field_of_no_document_is_a_warning_with_near_names():
    store = MemoryStore()
    equal = {"field": "meta.item", "operator": "==", "value": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.filter_documents(equal) == []  # of an empty store
        store.write_documents([Document("a", {"item_id": 1}, "1"), Document("b", {"year": None}, "2")])
        assert len(store.filter_documents({"field": "year", "operator": "==", "value": None})) == 2
    with pytest.warns(UnknownFieldWarning, match=r"'meta\.item' is in none .* did you mean 'meta\.item_id'"):
        assert store.filter_documents(equal) == []


def test_the_store_is_as_it_is_after_a_change():
    store = MemoryStore()
    equal = {"field": "x", "operator": "==", "value": 1}
    store.write_documents([Document("a", {"x": 1}, "1")])
    assert [d.id for d in store.filter_documents(equal)] == ["1"]
    store.write_documents([Document("b", {"x": 1}, "2")])
    store.delete_documents(["1"])
    assert [d.id for d in store.filter_documents(equal)] == ["2"]
