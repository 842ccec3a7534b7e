"""The stores keep the protocol of Haystack's document stores, and find what a plain computation finds."""

import threading

import numpy as np
import pytest

from duonlp.errors import InputError
from duonlp.retrieval import Document, DuplicatePolicy, FaissStore, MemoryStore

pytest.importorskip("bm25s")
pytest.importorskip("faiss")
STORES = {
    "memory": MemoryStore,
    "faiss": FaissStore,
    "hnsw": lambda **options: FaissStore(factory="HNSW16", **options),
    "ivf": lambda **options: FaissStore(factory="IVF2,Flat", parameters="nprobe=2", **options),
    "sq": lambda **options: FaissStore(factory="SQfp16", **options),
}
both = pytest.mark.parametrize("make", [MemoryStore, FaissStore])


def documents(count, first=0, size=8, seed=0):
    rng = np.random.default_rng(seed + first)
    vectors = rng.standard_normal((count, size)).astype(np.float32)
    return [Document(f"text {i} w{i % 7}", {"part": i % 5}, str(i), v) for i, v in enumerate(vectors, first)]


def ids(found):
    return [document.id for document in found]


@both
def test_policies(make):
    store = make()
    assert store.write_documents([]) == 0 and store.count_documents() == 0
    assert store.write_documents([Document("a", id="1"), Document("b", id="2")]) == 2
    for policy in (DuplicatePolicy.NONE, DuplicatePolicy.FAIL):
        with pytest.raises(InputError, match="'2' is in the store already"):
            store.write_documents([Document("c", id="3"), Document("x", id="2")], policy)
        with pytest.raises(InputError, match="'4' is repeated"):
            store.write_documents([Document("c", id="4"), Document("x", id="4")], policy)
    assert ids(store.filter_documents()) == ["1", "2"]
    assert store.write_documents([Document("c", id="3"), Document("x", id="2")], DuplicatePolicy.SKIP) == 1
    assert store.write_documents([Document("y", id="1"), Document("d", id="4")], DuplicatePolicy.OVERWRITE) == 2
    assert {d.id: d.content for d in store.filter_documents()} == {"1": "y", "2": "b", "3": "c", "4": "d"}
    store.delete_documents(["1", "unknown"])
    assert ids(store.filter_documents()) == ["2", "3", "4"]
    store.delete_documents(["2", "3", "4"])
    assert store.filter_documents() == [] and store.count_documents() == 0


@both
def test_what_is_written_and_found_are_copies(make):
    store, vector = make(), np.array([1.0, 2.0], np.float32)
    document = Document("a", {"tags": ["x"]}, "1", vector)
    store.write_documents([document])
    document.meta["tags"].append("y")
    vector[0] = 9
    (found,) = store.filter_documents()
    assert found.meta == {"tags": ["x"]} and found.embedding.tolist() == [1, 2] and found.score is None
    found.meta["tags"].clear()
    found.embedding[0] = 7
    (found,) = store.search_embeddings([[1.0, 0.0]])[0]
    assert found.meta == {"tags": ["x"]} and found.embedding.tolist() == [1, 2] and found.score == 1


@pytest.mark.parametrize("name", STORES)
def test_embeddings_are_found_as_by_a_plain_computation(name):
    store, rng = STORES[name](), np.random.default_rng(1)
    present = documents(120)
    store.write_documents(present)
    part = [None, {"field": "part", "operator": "==", "value": 2}, {"field": "part", "operator": "<", "value": 4}]
    for step in range(3):
        queries = rng.standard_normal((3, 8)).astype(np.float32)
        found = store.search_embeddings(queries, top_k=5, filters=part)
        for query, result, passes in zip(queries, found, (range(5), (2,), range(4)), strict=True):
            allowed = [d for d in present if d.meta["part"] in passes]
            scores = np.array([d.embedding @ query for d in allowed])
            assert all(d.meta["part"] in passes for d in result)
            order = np.argsort(-scores)[:5]
            tolerance = 1e-2 if name == "sq" else 1e-5
            if name not in ("hnsw", "sq"):
                assert ids(result) == [allowed[i].id for i in order]
            np.testing.assert_allclose([d.score for d in result[:1]], scores[order[:1]], rtol=tolerance, atol=tolerance)
        deleted = [d.id for d in present[step::9]]
        store.delete_documents(deleted)
        added = documents(30, first=1000 * (step + 1))
        store.write_documents(added)
        present = [d for d in present if d.id not in deleted] + added


@both
def test_top_k_is_larger_than_the_store(make):
    store = make()
    store.write_documents(documents(3))
    assert len(store.search_embeddings(np.ones((1, 8)), top_k=50)[0]) == 3
    assert len(store.search_keywords(["text"], top_k=50)[0]) == 3
    none = {"field": "part", "operator": "==", "value": 77}
    assert (
        store.search_embeddings(np.ones((1, 8)), filters=none) == store.search_keywords(["text"], filters=none) == [[]]
    )


@both
def test_documents_without_embeddings_are_found_by_words_only(make):
    store = make()
    store.write_documents([Document("the text", id="plain"), *documents(2)])
    assert sorted(ids(store.search_embeddings(np.ones((1, 8)))[0])) == ["0", "1"]
    assert "plain" in ids(store.search_keywords(["text"])[0])


@both
def test_the_last_embedding_is_overwritten(make):
    store = make()
    store.write_documents([Document("a", id="1", embedding=[1, 2]), Document("b", id="2")])
    store.write_documents([Document("a", id="1")], DuplicatePolicy.OVERWRITE)
    assert store.embedding_size is None
    with pytest.raises(InputError, match="none of the 2 documents has an embedding"):
        store.search_embeddings([[1, 2]])


@both
def test_equal_scores_keep_the_order_of_writing(make):
    store = make()
    store.write_documents([Document("same", id=str(i), embedding=np.ones(2)) for i in range(30)])
    assert ids(store.search_keywords(["same"], top_k=4)[0]) == list("0123")
    store.write_documents([Document("same", id="1", embedding=np.ones(2))], DuplicatePolicy.OVERWRITE)
    assert ids(store.search_keywords(["same"], top_k=4)[0]) == list("0234")
    assert ids(store.search_keywords(["same"], top_k=30)[0])[-1] == "1"


@both
def test_cosines(make):
    store = make(normalize=True)
    store.write_documents([Document("a", id="a", embedding=[3, 4]), Document("b", id="b", embedding=[0, 0])])
    (found,) = store.search_embeddings([[30, 40]])
    assert [(d.id, round(d.score, 6)) for d in found] == [("a", 1.0), ("b", 0.0)]


@pytest.mark.parametrize(
    ("embedding", "named"),
    [
        ([1, 2, 3], "has length 3, those of the store have length 2"),
        ([1, float("nan")], "not finite"),
        ([1, 1e300], "not finite"),
        ([1, -1e30], "not finite"),
        ([[1, 2]], "not a vector"),
        ([], "not a vector"),
        ("ab", "not a vector"),
        (["a", "b"], "not a vector"),
    ],
)
@both
def test_invalid_embeddings_are_refused_before_anything_is_written(make, embedding, named):
    store = make()
    store.write_documents([Document("a", id="a", embedding=[1, 2])])
    with pytest.raises(InputError, match="document 'c'") as error:
        store.write_documents([Document("b", id="b"), Document("c", id="c", embedding=embedding)])
    assert named in str(error.value)
    assert store.count_documents() == 1


@both
def test_invalid_arguments_are_refused(make):
    store = make()
    for call, named in [
        (lambda: store.search_keywords(["a"]), "store is empty"),
        (lambda: store.search_embeddings([[1.0]]), "store is empty"),
        (lambda: store.write_documents("a"), "expected a list of Document"),
        (lambda: store.write_documents(Document("a")), "expected a list of Document"),
        (lambda: store.write_documents(["a"]), "is a str"),
        (lambda: store.write_documents([Document("a")], "skip"), "DuplicatePolicy"),
        (lambda: store.delete_documents("a"), "list of ids"),
        (lambda: store.delete_documents(None), "list of ids"),
        (lambda: store.delete_documents([["a"]]), "is ['a'] (list)"),
        (lambda: store.update_embeddings(LengthEncoder(), batch_size=0), "batch_size is 0"),
        (lambda: make(normalize="yes"), "normalize is 'yes'"),
        (lambda: make(encoder=5), "encoder is 5"),
        (lambda: make(bm25={"k1": 1}), "BM25Options"),
        (lambda: make(tokenize="word"), "function"),
    ]:
        with pytest.raises(InputError) as error:
            call()
        assert named in str(error.value)
    store.write_documents([Document("a", id="a")])
    with pytest.raises(InputError, match="none of the 1 documents has an embedding"):
        store.search_embeddings([[1.0]])
    store.write_documents([Document("b", id="b", embedding=[1, 2])])
    for call, named in [
        (lambda: store.search_keywords("a"), "list of texts"),
        (lambda: store.search_keywords([1]), "a query is 1"),
        (lambda: store.search_keywords(["a"], top_k=0), "top_k is 0"),
        (lambda: store.search_keywords(["a"], top_k=True), "top_k is True"),
        (lambda: store.search_keywords(["a"], filters=[None, None]), "2 filters for 1 queries"),
        (lambda: store.search_keywords(["a"], filters="x"), "'x'"),
        (lambda: store.search_embeddings([1.0, 2.0]), "shape [2]"),
        (lambda: store.search_embeddings([["a"]]), "shape []"),
        (lambda: store.search_embeddings([[1.0, np.inf]]), "not finite"),
        (lambda: store.search_embeddings([[1.0, 2.0, 3.0]]), "have length 2, those given have length 3"),
    ]:
        with pytest.raises(InputError) as error:
            call()
        assert named in str(error.value)
    assert store.search_keywords([]) == []


@pytest.mark.parametrize(
    ("factory", "parameters", "named"),
    [
        ("Flat,", "", "'Flat,'"),
        ("nonsense", "", "length 2: could not parse index string nonsense; see"),
        ("Flat", "nprobe=3", "nprobe=3"),
        ("L2norm,Flat", "", "normalize=True"),
        (3, "", "factory of FaissStore is 3"),
    ],
)
def test_an_invalid_faiss_index_is_refused_by_the_first_write(factory, parameters, named):
    with pytest.raises(InputError) as error:
        FaissStore(factory=factory, parameters=parameters).write_documents([Document("a", embedding=[1, 2])])
    assert named in str(error.value)


def test_too_few_documents_to_train_on():
    store = FaissStore(factory="IVF64,Flat", parameters="nprobe=64")
    store.write_documents(documents(10))
    for _ in range(2):
        with pytest.raises(InputError, match=r"10 vectors: Number of training points.*write more documents"):
            store.search_embeddings(np.ones((1, 8)))
    store.write_documents(documents(100, first=10))
    assert len(store.search_embeddings(np.ones((1, 8)))[0]) == 10


class LengthEncoder:
    """Encodes a text as its length and number of words."""

    def __init__(self, name="lengths", size=2):
        self.name, self.size, self.calls = name, size, []

    def encode_documents(self, texts, titles=None):
        self.calls.append((len(texts), titles))
        return np.array([[len(t), t.count(" "), 0][: self.size] for t in texts], np.float32)


@both
def test_update_embeddings(make):
    store, encoder = make(), LengthEncoder()
    store.write_documents(
        [Document("a b c", {"title": "T"}, "1"), Document("d", id="2"), Document("e f", id="3", embedding=[5, 5])]
    )
    assert store.update_embeddings(encoder, batch_size=1, title_field="title") == 2
    assert encoder.calls == [(1, ["T"]), (1, [""])]
    assert store.update_embeddings(encoder) == 0 and store.encoder == "lengths" and store.embedding_size == 2
    assert {d.id: d.embedding.tolist() for d in store.filter_documents()} == {"1": [5, 2], "2": [1, 0], "3": [5, 5]}
    assert ids(store.search_embeddings([[0, 1]], encoder="lengths")[0]) == ["3", "1", "2"]
    with pytest.raises(InputError, match="'lengths', not 'other'"):
        store.search_embeddings([[0, 1]], encoder="other")
    with pytest.raises(InputError, match="'lengths', not 'other'"):
        store.update_embeddings(LengthEncoder("other"))
    assert store.update_embeddings(LengthEncoder("other", 3), overwrite=True) == 3
    assert store.embedding_size == 3 and store.encoder == "other"
    assert ids(store.search_embeddings([[1, 0, 0]], encoder="other", top_k=1)[0]) == ["1"]
    with pytest.raises(InputError, match="'other' have length 3, those of 'other' have length 2"):
        store.check_encoder("other", 2)
    store.delete_documents(["1", "2", "3"])
    store.write_documents([Document("x", embedding=[1, 2, 3, 4])])  # an empty store takes any length
    assert store.embedding_size == 4


def test_documents_are_deleted_while_they_are_encoded():
    store = MemoryStore()
    store.write_documents([Document("a", id="a")])

    class Deleting(LengthEncoder):
        def encode_documents(self, texts, titles=None):
            store.delete_documents(["a"])
            return super().encode_documents(texts, titles)

    store.update_embeddings(Deleting())
    assert store.embedding_size is None
    store.write_documents([Document("b", embedding=[1, 2, 3])])


def test_an_encoder_that_returns_nonsense_changes_nothing():
    store = MemoryStore()
    store.write_documents([Document("a", id="1")])

    class Broken(LengthEncoder):
        def encode_documents(self, texts, titles=None):
            return np.full((len(texts), 2), np.nan)

    with pytest.raises(InputError, match="'broken' is not finite"):
        store.update_embeddings(Broken("broken"))
    assert store.embedding_size is None and store.encoder is None


@both
def test_an_index_whose_update_failed_is_built_anew(make):
    fails = [False]

    def tokenize(text):
        if fails[0] and text == "bad":
            raise RuntimeError("no words")
        return text.split()

    store = make(tokenize=tokenize)
    store.write_documents([Document("a b", id="1")])
    assert ids(store.search_keywords(["b"])[0]) == ["1"]
    store.write_documents([Document("b", id="2"), Document("bad", id="3")])
    fails[0] = True
    with pytest.raises(RuntimeError):
        store.search_keywords(["b"])
    fails[0] = False
    assert ids(store.search_keywords(["b"])[0]) == ["2", "1"]


@both
def test_threads_search_while_another_writes(make):
    store, errors, done = make(), [], threading.Event()
    store.write_documents(documents(50))
    by_id = {d.id: d for d in documents(50) + documents(400, first=1000)}

    def search():
        rng = np.random.default_rng()
        while not done.is_set():
            query = rng.standard_normal((1, 8)).astype(np.float32)
            try:
                for d in store.search_embeddings(query, top_k=5)[0]:
                    assert abs(by_id[d.id].embedding @ query[0] - d.score) < 1e-4 and d.content == by_id[d.id].content
                for d in store.search_keywords(["w3"], top_k=5)[0]:
                    assert "w3" in d.content
            except Exception as error:
                errors.append(error)
                return

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    for start in range(0, 400, 20):
        store.write_documents(documents(400, first=1000)[start : start + 20])
        store.delete_documents([str(1000 + start), str(start // 10)])
    done.set()
    for thread in threads:
        thread.join()
    assert not errors, errors
    assert store.count_documents() == 50 + 400 - 40
