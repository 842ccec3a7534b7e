"""Retrievers pass queries, filters and top_k on, and refuse what does not fit their store."""

import numpy as np
import pytest

from duonlp.errors import InputError
from duonlp.retrieval import BM25Retriever, Document, EmbeddingRetriever, FaissStore, MemoryStore

pytest.importorskip("bm25s")


class LetterEncoder:
    """Counts the letters a and b."""

    name, size = "letters", 2

    def encode_queries(self, texts):
        return np.array([[text.count("a"), text.count("b")] for text in texts], np.float32)

    def encode_documents(self, texts, titles=None):
        return self.encode_queries(texts)


@pytest.fixture(params=[MemoryStore, FaissStore])
def store(request):
    pytest.importorskip("faiss")
    store = request.param()
    texts = {"1": "a a", "2": "b", "3": "a b", "4": "c"}
    store.write_documents([Document(text, {"odd": int(name) % 2}, name) for name, text in texts.items()])
    store.update_embeddings(LetterEncoder())
    return store


def ids(results):
    return [[document.id for document in documents] for documents in results]


def test_keywords(store):
    odd = {"field": "odd", "operator": "==", "value": 1}
    retriever = BM25Retriever(store, top_k=2)
    assert ids(retriever.retrieve(["a", "b b", "z"])) == [["1", "3"], ["2", "3"], []]
    assert ids(retriever.retrieve(["a", "b"], top_k=1, filters=[None, odd])) == [["1"], ["3"]]
    assert ids(BM25Retriever(store, filters=odd).retrieve(["b"])) == [["3"]]
    assert ids(BM25Retriever(store, fill=True).retrieve(["c"])) == [["4", "2", "1", "3"]]
    assert retriever.retrieve([]) == []


def test_embeddings(store):
    odd = {"field": "odd", "operator": "==", "value": 1}
    retriever = EmbeddingRetriever(store, LetterEncoder(), top_k=2)
    assert ids(retriever.retrieve(["a", "ab"], top_k=1)) == [["1"], ["1"]]
    assert ids(retriever.retrieve(["bb"], filters=odd)) == [["3", "1"]]
    assert retriever.retrieve([]) == []
    assert [d.score for d in retriever.retrieve(["aab"])[0]] == [4, 3]


def test_an_encoder_that_does_not_fit_is_refused(store):
    class Other(LetterEncoder):
        name = "other"

    class Wide(LetterEncoder):
        size = 3

    with pytest.raises(InputError, match="'letters', not 'other'"):
        EmbeddingRetriever(store, Other()).retrieve(["a"])
    with pytest.raises(InputError, match=r"'letters' has embeddings of shape \[1, 2\]"):
        EmbeddingRetriever(store, Wide()).retrieve(["a"])


class PlainStore:
    """Searches without options."""

    def count_documents(self):
        return 1

    def search_keywords(self, queries, *, top_k=10, filters=None):
        return [[Document(f"{query} {top_k} {filters}")] for query in queries]


def test_a_store_that_cannot_fill():
    assert BM25Retriever(PlainStore(), 3).retrieve(["a"])[0][0].content == "a 3 None"
    with pytest.raises(InputError, match="PlainStore returns only"):
        BM25Retriever(PlainStore(), fill=True)


def test_invalid_arguments_are_refused(store):
    for call, named in [
        (lambda: BM25Retriever(object()), "object has no keyword search"),
        (lambda: EmbeddingRetriever(object(), LetterEncoder()), "no embedding search"),
        (lambda: BM25Retriever(store, top_k=0), "top_k is 0"),
        (lambda: BM25Retriever(store).retrieve("a"), "list of texts"),
        (lambda: EmbeddingRetriever(store, LetterEncoder()).retrieve(["a"], top_k=1.5), "top_k is 1.5"),
        (lambda: EmbeddingRetriever(MemoryStore(), LetterEncoder()).retrieve(["a"]), "store is empty"),
        (lambda: BM25Retriever(MemoryStore()).retrieve(["a"]), "store is empty"),
    ]:
        with pytest.raises(InputError) as error:
            call()
        assert named in str(error.value)
