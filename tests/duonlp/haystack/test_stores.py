"""duonlp's stores as stores of Haystack: Haystack's own tests of document stores, and the retriever components."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("haystack", reason="the extra qa is not installed")
pytest.importorskip("bm25s", reason="the extra qa is not installed")

from haystack import Document, Pipeline
from haystack.document_stores.errors import DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy
from haystack.errors import FilterError
from haystack.testing.document_store import DocumentStoreBaseExtendedTests

from duonlp.errors import InputError
from duonlp.haystack import FaissDocumentStore, MemoryBM25Retriever, MemoryDocumentStore, MemoryEmbeddingRetriever

STORES = [MemoryDocumentStore, FaissDocumentStore]


@pytest.fixture(params=STORES, ids=lambda store: store.__name__)
def document_store(request):
    if request.param is FaissDocumentStore:
        pytest.importorskip("faiss", reason="the extra qa is not installed")
    return request.param()


@pytest.mark.filterwarnings("ignore::duonlp.retrieval.UnknownFieldWarning")
class TestHaystacksTests(DocumentStoreBaseExtendedTests):
    """Haystack's tests of writing, counting, filtering, deleting and updating."""

    @pytest.fixture
    def document_store(self, document_store):
        return document_store

    @staticmethod
    def assert_documents_are_equal(received, expected):
        """Compare documents whose embeddings were float64 before they were stored."""

        def rounded(documents):
            vectors = [None if d.embedding is None else np.asarray(d.embedding, np.float32).tolist() for d in documents]
            return [replace(d, embedding=vector) for d, vector in zip(documents, vectors, strict=True)]

        assert rounded(received) == rounded(expected)

    def test_write_documents(self, document_store):
        documents = [Document(content="test doc", id=name) for name in "ab"]
        assert document_store.write_documents(documents[:1]) == 1
        with pytest.raises(DuplicateDocumentError, match="'a' is in the store already"):
            document_store.write_documents([documents[1], documents[0]])
        with pytest.raises(DuplicateDocumentError, match="'b' is repeated"):
            document_store.write_documents(documents[1:] * 2)
        assert document_store.filter_documents() == documents[:1]


DOCUMENTS = [
    Document(content="A loud keyboard.", meta={"n": 1}, embedding=[1.0, 0.0]),
    Document(content="The keyboard, the keyboard!", meta={"n": 2}, embedding=[0.0, 1.0]),
    Document(content="A screen.", meta={"n": 3}, embedding=[3.0, 2.0]),
]


def test_retrievers_search_and_filter(document_store):
    words, vectors = MemoryBM25Retriever(document_store), MemoryEmbeddingRetriever(document_store, top_k=2)
    assert words.run("keyboard") == {"documents": []} == vectors.run([1.0, 0.0])  # empty
    document_store.write_documents(DOCUMENTS)
    found = words.run("keyboard")["documents"]
    assert [d.id for d in found] == [DOCUMENTS[1].id, DOCUMENTS[0].id] and found[0].score > found[1].score > 0
    assert [d.id for d in words.run("keyboard", top_k=1)["documents"]] == [DOCUMENTS[1].id]
    found = vectors.run([1.0, 0.0])["documents"]
    assert [(d.id, d.score) for d in found] == [(DOCUMENTS[2].id, 3.0), (DOCUMENTS[0].id, 1.0)]
    assert found[0].content == "A screen." and found[0].meta == {"n": 3} and found[0].embedding == [3.0, 2.0]
    below = {"field": "meta.n", "operator": "<", "value": 3}
    assert [d.meta["n"] for d in vectors.run([1.0, 0.0], filters=below)["documents"]] == [1, 2]
    not_one = {"field": "id", "operator": "!=", "value": DOCUMENTS[0].id}
    for policy, expected in (("replace", [1, 2]), ("merge", [2])):
        retriever = MemoryEmbeddingRetriever(document_store, filters=not_one, filter_policy=policy)
        assert [d.meta["n"] for d in retriever.run([1.0, 0.0], filters=below)["documents"]] == expected
    with pytest.raises(FilterError, match="'~'"):
        words.run("keyboard", filters={"field": "meta.n", "operator": "~", "value": 1})
    with pytest.raises(InputError, match="length 2, those given have length 3"):
        vectors.run([1.0, 0.0, 0.0])
    with pytest.raises(InputError, match="top_k is 0"):
        words.run("keyboard", top_k=0)


def test_pipelines_load_a_saved_store_from_yaml(document_store, tmp_path):
    kind = type(document_store)
    store = kind(tmp_path / "store", bm25={"k1": 1.5}, normalize=True)
    store.write_documents(DOCUMENTS)
    store.save()
    pipeline = Pipeline()
    pipeline.add_component(
        "words", MemoryBM25Retriever(store, filters={"field": "n", "operator": "in", "value": [1, 2]})
    )
    pipeline.add_component("vectors", MemoryEmbeddingRetriever(store, filter_policy="merge"))
    loaded = Pipeline.loads(pipeline.dumps(), allowed_modules=["duonlp.haystack"])
    assert loaded.dumps() == pipeline.dumps()
    inputs = {"words": {"query": "keyboard screen"}, "vectors": {"query_embedding": [1.0, 0.0]}}
    ours, theirs = pipeline.run(inputs), loaded.run(inputs)
    assert ours == theirs and [d.meta["n"] for d in ours["words"]["documents"]] == [2, 1]
    assert ours["vectors"]["documents"][0].score == pytest.approx(1)


def test_misuse_names_the_value(document_store, tmp_path):
    store = type(document_store)
    with pytest.raises(InputError, match="has no folder"):
        document_store.save()
    with pytest.raises(InputError, match="has no text"):
        document_store.write_documents([Document(content=None)])
    with pytest.raises(InputError, match=r"expected a list of haystack\.Document"):
        document_store.write_documents("text")
    with pytest.raises(InputError, match="length 1, those of the store have length 2"):
        document_store.write_documents([*DOCUMENTS, Document(content="x", embedding=[1.0])], DuplicatePolicy.SKIP)
    with pytest.raises(InputError, match="k3"):
        store(bm25={"k3": 1})
    with pytest.raises(InputError, match="document_store is a list"):
        MemoryBM25Retriever([])
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="other"):
        store(tmp_path / "other")
    with pytest.raises(InputError, match="bm25 is 3; expected a dict"):
        store(bm25=3)


def test_options_that_differ_from_a_saved_store_are_refused(document_store, tmp_path):
    store, options = type(document_store), {"k1": 2.0, "stop_words": ["a"]}
    store(tmp_path / "saved", bm25=options).save()
    assert store(tmp_path / "saved").store.bm25 == store(tmp_path / "saved", bm25=options).store.bm25
    for changes, name in (({"bm25": {"k1": 3.0}}, "bm25 is"), ({"normalize": True}, "normalize is True")):
        with pytest.raises(InputError, match=f"{name}.*but that of the store in"):
            store(tmp_path / "saved", **changes)
