"""Haystack's document stores behind duonlp's interfaces: memory, real PostgreSQL and Milvus, OpenSearch, Elasticsearch."""

import os
import uuid

import numpy as np
import pytest

pytest.importorskip("haystack", reason="the extra qa is not installed")

from duonlp.errors import InputError
from duonlp.retrieval import (
    BM25Retriever,
    Document,
    DuplicatePolicy,
    EmbeddingRetriever,
    HaystackStore,
    HybridRetriever,
    MemoryStore,
)
from duonlp.retrieval.haystack_store import from_haystack, import_haystack, to_haystack
from tests.search_engine import SearchEngine
from tests.services import postgresql

import_haystack()

WORDS = ("battery", "keyboard", "screen", "red")
TEXTS = {
    "The battery lasts six hours; a second battery fits.": {"item_id": "A1", "stars": 4},
    "The keyboard is loud and red.": {"item_id": "A1", "stars": 2},
    "A bright screen, a red case.": {"item_id": "B2", "stars": 5},
    "Nothing to add.": {"item_id": "B2"},
}
KINDS = ("memory", "pgvector", "milvus", "opensearch", "elasticsearch")


class WordCounts:
    """An encoder whose vectors count WORDS, with a 1 at the end."""

    name, size = "word-counts", len(WORDS) + 1

    def encode_queries(self, texts):
        return np.array([[*(text.lower().count(word) for word in WORDS), 1] for text in texts], np.float32)

    def encode_documents(self, texts, titles=None):
        return self.encode_queries(texts)


@pytest.fixture(scope="module")
def postgres_address():
    with postgresql() as address:
        yield address


@pytest.fixture(scope="module")
def engines():
    """Return a function from "opensearch" or "elasticsearch" to its address: the user's, or that of a stand-in."""
    standins = {}

    def address(kind):
        if url := os.environ.get(f"{kind.upper()}_URL"):
            return url
        if kind not in standins:
            standins[kind] = SearchEngine(kind)
            standins[kind].__enter__()
        return standins[kind].url

    address.standins = standins
    yield address
    for standin in standins.values():
        standin.__exit__(None, None, None)


@pytest.fixture
def make_store(request, tmp_path, engines, monkeypatch):
    """Return a function from a kind to a new, empty Haystack store for vectors of 5 values and their inner product."""
    from haystack.utils import Secret

    def make(kind):
        name, size = f"t{uuid.uuid4().hex}", WordCounts.size
        if kind == "memory":
            from haystack.document_stores.in_memory import InMemoryDocumentStore

            return InMemoryDocumentStore(embedding_similarity_function="dot_product")
        if kind == "pgvector":
            module = pytest.importorskip("haystack_integrations.document_stores.pgvector")
            address = Secret.from_token(request.getfixturevalue("postgres_address"))
            store = module.PgvectorDocumentStore(
                connection_string=address, table_name=name, embedding_dimension=size, vector_function="inner_product",
                keyword_index_name=f"{name}_words",
            )  # fmt: skip
            request.addfinalizer(store.close)
            return store
        if kind == "milvus":
            module = pytest.importorskip("milvus_haystack")
            pytest.importorskip("milvus_lite")
            from milvus_haystack.function import BM25BuiltInFunction

            store = module.MilvusDocumentStore(
                connection_args={"uri": str(tmp_path / f"{name}.db")},
                index_params={"metric_type": "IP", "index_type": "AUTOINDEX", "params": {}},
                sparse_vector_field="sparse",
                builtin_function=[BM25BuiltInFunction(input_field_names="text", output_field_names="sparse")],
            )
            request.addfinalizer(store.client.close)
            return store
        url = engines(kind)
        module = pytest.importorskip(f"haystack_integrations.document_stores.{kind}")
        if kind == "opensearch":
            store = module.OpenSearchDocumentStore(
                hosts=url, index=name, embedding_dim=size, verify_certs=False, ssl_show_warn=False,
                method={"name": "hnsw", "engine": "lucene", "space_type": "innerproduct"},
            )  # fmt: skip
        else:
            store = module.ElasticsearchDocumentStore(
                hosts=url, index=name, embedding_similarity_function="max_inner_product"
            )
        request.addfinalizer(
            lambda: store._client and store._client.indices.delete(index=name, ignore_unavailable=True)
        )
        return store

    return make


def documents():
    return [Document(text, meta) for text, meta in TEXTS.items()]


def item(value, operator="=="):
    return {"field": "meta.item_id", "operator": operator, "value": value}


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_writes_filters_finds_and_deletes(make_store, kind):
    haystack_store = make_store(kind)
    store = HaystackStore(haystack_store, WordCounts())
    written = documents()
    assert store.count_documents() == 0 and store.filter_documents() == []
    for retriever in (BM25Retriever(store), EmbeddingRetriever(store, WordCounts())):
        with pytest.raises(InputError, match="empty; write documents"):
            retriever.retrieve(["red"])
    assert store.write_documents(written) == 4 == store.count_documents()

    stored = {document.id: document for document in store.filter_documents()}
    for document in written:
        found = stored[document.id]
        assert (found.content, found.meta) == (document.content, document.meta)
        np.testing.assert_allclose(found.embedding, WordCounts().encode_documents([document.content])[0], rtol=1e-6)
    assert {d.content for d in store.filter_documents(item("A1"))} == set(list(TEXTS)[:2])
    several = {
        "operator": "AND",
        "conditions": [item(["B2", "C3"], "in"), {"field": "meta.stars", "operator": ">", "value": 4}],
    }
    assert [d.content for d in store.filter_documents(several)] == ["A bright screen, a red case."]
    assert store.filter_documents({"field": "meta.color", "operator": "==", "value": "red"}) == []
    with pytest.raises(InputError, match="'~'"):
        store.filter_documents({"field": "meta.stars", "operator": "~", "value": 1})

    words = BM25Retriever(store, top_k=2)
    (found,) = words.retrieve(["battery"])
    assert [d.content for d in found] == list(TEXTS)[:1] and found[0].score is not None
    both = words.retrieve(["red", "red"], filters=[item("A1"), item("B2")])
    assert [[d.content for d in found] for found in both] == [[list(TEXTS)[1]], [list(TEXTS)[2]]]

    assert words.retrieve(["", "?!"]) == [[], []]
    (found,) = words.retrieve(["red' OR (battery\" AND %s {0} \\ the"])  # no syntax of its own
    assert {d.content for d in found} <= set(TEXTS)

    vectors = EmbeddingRetriever(store, WordCounts())
    first, second = vectors.retrieve(["battery", "red screen"], top_k=2)
    assert [first[0].content, second[0].content] == list(TEXTS)[:3:2]
    assert len(first) == 2 and first[0].score > first[1].score
    (found,) = vectors.retrieve(["battery"], filters=item("B2"))
    assert {d.meta["item_id"] for d in found} == {"B2"} and len(found) == 2
    (found,) = HybridRetriever([words, vectors], top_k=1).retrieve(["battery"])
    assert [d.content for d in found] == list(TEXTS)[:1]

    store.delete_documents([written[0].id, "unknown"])
    assert {d.id for d in store.filter_documents()} == {d.id for d in written[1:]}


@pytest.mark.parametrize("kind", KINDS)
def test_duplicates_follow_the_policy_and_nothing_is_written_if_it_is_fail(make_store, kind):
    store, texts = HaystackStore(make_store(kind), WordCounts()), list(TEXTS)
    old, new = Document(texts[0], id="a"), Document(texts[1], id="a")
    assert store.write_documents([old]) == 1
    for policy in (DuplicatePolicy.NONE, DuplicatePolicy.FAIL):
        with pytest.raises(InputError, match="the document id 'a' is in the store already"):
            store.write_documents([Document(texts[2], id="b"), new], policy)
        with pytest.raises(InputError, match="the document id 'b' is repeated"):
            store.write_documents([Document(texts[2], id="b"), Document(texts[3], id="b")], policy)
    assert [d.id for d in store.filter_documents()] == ["a"]
    skipped = [new, Document(texts[2], id="b"), Document(texts[3], id="b")]
    assert store.write_documents(skipped, DuplicatePolicy.SKIP) == 1
    assert {d.id: d.content for d in store.filter_documents()} == {"a": texts[0], "b": texts[2]}
    assert store.write_documents([old, new], DuplicatePolicy.OVERWRITE) == 2
    assert {d.id: d.content for d in store.filter_documents()} == {"a": texts[1], "b": texts[2]}
    assert store.write_documents([]) == 0


@pytest.mark.parametrize("kind", ["memory", "pgvector", "milvus"])
def test_embeddings_find_the_documents_that_they_find_in_a_memory_store(make_store, kind):
    rng = np.random.default_rng(0)
    vectors, queries = (rng.standard_normal((n, WordCounts.size)).astype(np.float32) for n in (300, 5))
    written = [Document(f"text {n}", {"n": n % 3}, embedding=vector) for n, vector in enumerate(vectors)]
    stores = MemoryStore(), HaystackStore(make_store(kind))
    for store in stores:
        store.write_documents(written)
    for filters in (None, {"field": "meta.n", "operator": "in", "value": [0, 2]}):
        ours, theirs = (store.search_embeddings(queries, top_k=10, filters=filters) for store in stores)
        assert [[d.id for d in found] for found in ours] == [[d.id for d in found] for found in theirs]


@pytest.mark.parametrize("kind", ["memory", "pgvector", "milvus"])
def test_embeddings_of_another_encoder_or_width_are_refused_by_name(make_store, kind):
    store = HaystackStore(make_store(kind), WordCounts())
    store.write_documents(documents())
    wide = WordCounts()
    wide.name, wide.size, wide.encode_queries = "wide", 7, lambda texts: np.ones((len(texts), 7), np.float32)
    with pytest.raises(InputError, match="embeddings are of the encoder 'word-counts', not 'wide'"):
        EmbeddingRetriever(store, wide).retrieve(["red"])
    with pytest.raises(InputError, match="have length 5, those of 'wide' have length 7; use the encoder"):
        EmbeddingRetriever(HaystackStore(store.store), wide).retrieve(["red"])
    with pytest.raises(InputError, match="document 'x' has length 2, those of 'word-counts' have length 5"):
        store.write_documents([Document("red", id="x", embedding=np.ones(2, np.float32))])
    with pytest.raises(InputError, match="'x' has length 2, those of other documents have length 3"):
        odd = [Document("red", id=name, embedding=np.ones(size)) for name, size in (("y", 3), ("x", 2))]
        HaystackStore(store.store).write_documents(odd)
    assert store.count_documents() == 4


def test_misuse_names_the_value(make_store):
    with pytest.raises(InputError, match="store is a list without count_documents"):
        HaystackStore([])
    store = HaystackStore(make_store("memory"))
    for bad, message in (("a text", "documents are a str"), (["a text"], "one of the documents is a str")):
        for policy in DuplicatePolicy:
            with pytest.raises(InputError, match=message):
                store.write_documents(bad, policy)
    with pytest.raises(InputError, match="policy is 'skip'"):
        store.write_documents([], "skip")
    with pytest.raises(InputError, match="ids to delete are 'id'"):
        store.delete_documents("id")
    store.write_documents(documents())
    for arguments, message in (
        ({"queries": "red"}, "queries are 'red'"),
        ({"queries": ["red"], "top_k": 0}, "top_k is 0"),
        ({"queries": ["red", "case"], "filters": [None]}, "1 filters for 2 queries"),
        ({"queries": ["red"], "fill": True}, "cannot fill results"),
    ):
        with pytest.raises(InputError, match=message):
            store.search_keywords(**arguments)
    assert store.search_keywords([]) == []

    class Unknown:
        def __init__(self):
            for name in ("count_documents", "filter_documents", "write_documents", "delete_documents"):
                setattr(self, name, lambda *arguments: 0)

    with pytest.raises(InputError, match=r"no keyword retriever is known for this Unknown; .* keyword_retriever="):
        HaystackStore(Unknown()).search_keywords(["red"])


def test_components_of_ones_own_search(make_store):
    from haystack.components.retrievers.in_memory import InMemoryBM25Retriever

    inner = make_store("memory")
    store = HaystackStore(inner, keyword_retriever=InMemoryBM25Retriever(inner, scale_score=True))
    store.write_documents(documents())
    assert 0 < store.search_keywords(["battery"])[0][0].score < 1


def test_documents_survive_the_conversion():
    document = Document("text", {"a": [1, {"b": None}]}, "id", np.array([0.1, 2], np.float32), 0.5)
    back = from_haystack(to_haystack(document))
    assert (back.content, back.meta, back.id, back.score) == (document.content, document.meta, "id", 0.5)
    np.testing.assert_array_equal(back.embedding, document.embedding)
    assert back.embedding.dtype == np.float32


def test_what_opensearch_and_elasticsearch_are_asked(make_store, engines):
    """Pin the requests: index with the vector's width and similarity, bulk creation, keyword and vector queries with a filter."""
    for kind, knn in (
        ("opensearch", {"type": "knn_vector", "dimension": 5}),
        ("elasticsearch", {"type": "dense_vector", "similarity": "max_inner_product"}),
    ):
        if os.environ.get(f"{kind.upper()}_URL"):
            continue
        store = HaystackStore(make_store(kind), WordCounts())
        requests = engines.standins[kind].requests
        requests.clear()
        store.write_documents(documents())
        store.search_keywords(["red case"], top_k=3, filters=item("A1"))
        EmbeddingRetriever(store, WordCounts(), top_k=3, filters=item("A1")).retrieve(["battery"])
        created = next(body for method, path, body in requests if method == "PUT" and path.count("/") == 1)
        embedding = created["mappings"]["properties"]["embedding"]
        assert {key: embedding[key] for key in knn} == knn
        actions = next(body for _, path, body in requests if path.endswith("/_bulk"))
        assert [action["create"]["_id"] for action in actions[::2]] == [d.id for d in documents()]
        assert [source["content"] for source in actions[1::2]] == list(TEXTS)
        assert actions[1]["embedding"] == [2, 0, 0, 0, 1] and actions[1]["item_id"] == "A1"
        searches = [body for _, path, body in requests if path.endswith("/_search")]
        words, vector = searches[-2:]
        assert words["size"] == 3 and "A1" in str(words["query"]["bool"]["filter"])
        assert words["query"]["bool"]["must"][0]["multi_match"]["query"] == "red case"
        if kind == "opensearch":
            assert vector["query"]["bool"]["must"][0]["knn"]["embedding"] == {"vector": [1, 0, 0, 0, 1], "k": 3}
            assert "A1" in str(vector["query"]["bool"]["filter"])
        else:
            assert vector["knn"]["query_vector"] == [1, 0, 0, 0, 1] and vector["knn"]["k"] == 3
            assert "A1" in str(vector["knn"]["filter"])
