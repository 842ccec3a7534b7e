"""Reciprocal rank fusion and re-ranking."""

import numpy as np
import pytest

from duonlp.errors import InputError
from duonlp.retrieval import Document, HybridRetriever, RerankingRetriever


class Fixed:
    """Returns documents by id in a fixed order, and keeps what it was asked."""

    def __init__(self, *names):
        self.documents, self.asked = [Document(name, id=name, score=1.0) for name in names], []

    def retrieve(self, queries, *, top_k=None, filters=None):
        self.asked.append((list(queries), top_k, filters))
        return [self.documents[:top_k] for _ in queries]


class Shortest:
    """Ranks by length, and counts documents."""

    def rank_all(self, queries, documents, top_k=None):
        self.count = [len(found) for found in documents]
        return [sorted(found, key=lambda document: len(document.content))[:top_k] for found in documents]


def names(documents):
    return [document.id for document in documents]


def test_scores_are_sums_of_reciprocal_ranks():
    first, second = Fixed("a", "b", "c"), Fixed("c", "d")
    (found,) = HybridRetriever([first, second]).retrieve(["q"])
    assert names(found) == ["c", "a", "b", "d"]  # b and d have one score
    assert [document.score for document in found] == [1 / 63 + 1 / 61, 1 / 61, 1 / 62, 1 / 62]
    assert first.documents[2].score == 1.0
    (found,) = HybridRetriever([first, second], k=0, weights=[1, 0.1]).retrieve(["q"], top_k=2)
    assert names(found) == ["a", "b"]


def test_depth_and_filters_reach_the_retrievers():
    first = Fixed("a", "b", "c")
    hybrid = HybridRetriever([first], top_k=2, depth=1)
    filters = [{"field": "meta.x", "operator": "==", "value": 1}, None]
    assert [names(found) for found in hybrid.retrieve(["p", "q"], filters=filters)] == [["a", "b"]] * 2
    hybrid.retrieve(["p"], top_k=3)
    assert first.asked == [(["p", "q"], 2, filters), (["p"], 3, None)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"retrievers": []}, "retrievers is empty"),
        ({"top_k": 0}, "top_k is 0"),
        ({"retrievers": Fixed("a")}, "give a list of retrievers"),
        ({"retrievers": ["bm25"]}, "give a list of retrievers"),
        ({"k": -1}, "k is -1; it must be a number of 0 or more"),
        ({"k": "60"}, "k is '60'"),
        ({"k": float("inf")}, "k is inf"),
        ({"weights": 3}, "weights is 3 for 1 retrievers"),
        ({"weights": ["a"]}, "give one of 0 or more for each"),
        ({"weights": [1.0, 2.0]}, r"weights is \[1.0, 2.0\] for 1 retrievers"),
        ({"weights": [-1.0]}, "give one of 0 or more for each"),
    ],
)
def test_bad_settings_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        HybridRetriever(**{"retrievers": [Fixed("a")], **arguments})


def test_what_cannot_rank_is_refused():
    with pytest.raises(InputError, match="expected an object with a method rank_all"):
        RerankingRetriever(Fixed("a"), Fixed("a"))


def test_weights_may_be_an_array():
    assert HybridRetriever([Fixed("a"), Fixed("b")], weights=np.array([1, 2])).weights == [1.0, 2.0]


def test_a_ranker_orders_the_candidates():
    ranker = Shortest()
    retriever = RerankingRetriever(Fixed("long", "mid", "s", "xs"), ranker, top_k=2, candidates=3)
    assert [names(found) for found in retriever.retrieve(["p", "q"])] == [["s", "mid"]] * 2 and ranker.count == [3, 3]
    assert names(retriever.retrieve(["p"], top_k=4)[0]) == ["s", "xs", "mid", "long"]
