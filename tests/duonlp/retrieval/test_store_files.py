"""A saved store opens as it was; a damaged one is refused, and named."""

import json
import shutil

import numpy as np
import pytest

from duonlp.errors import DuonlpError, InputError
from duonlp.retrieval import BM25Options, Document, FaissStore, MemoryStore

pytest.importorskip("bm25s")
pytest.importorskip("faiss")
both = pytest.mark.parametrize("make", [MemoryStore, FaissStore])


def filled(make, **options):
    rng = np.random.default_rng(0)
    store = make(encoder="test encoder", **options)
    store.write_documents(
        [
            Document(
                f"text {i} w{i % 4} ü\ud800",
                {"part": i % 3, "nested": {"a": [1, None]}},
                str(i),
                rng.random(4) if i % 5 else None,
            )
            for i in range(40)
        ]
    )
    return store


def answers(store):
    query = np.array([[1, -1, 0.5, 0], [0, 0, 0, 1]], np.float32)
    return [
        [[(d.id, d.score, d.content, d.meta) for d in r] for r in results]
        for results in (
            store.search_keywords(["w1 w2", "nothing"]),
            store.search_embeddings(
                query, encoder="test encoder", filters=[None, {"field": "part", "operator": ">", "value": 0}]
            ),
            [store.filter_documents({"field": "meta.nested.a", "operator": "==", "value": [1, None]})],
        )
    ]


@both
def test_a_saved_store_opens_as_it_was(make, tmp_path):
    options = BM25Options(method="bm25+", k1=1.6, stop_words=["text"])
    store = filled(make, bm25=options, normalize=True)
    store.delete_documents(["3", "7"])
    store.save(tmp_path / "store")
    opened = make.open(tmp_path / "store")
    assert answers(opened) == answers(store)
    assert (opened.bm25.k1, opened.normalize, opened.encoder, opened.embedding_size) == (1.6, True, "test encoder", 4)
    for either in (store, opened):
        either.write_documents([Document("w1 new", {"part": 1}, "new", [9, 9, 9, 9])])
        either.delete_documents(["5"])
    assert answers(opened) == answers(store)
    opened.save(tmp_path / "store")
    assert answers(make.open(tmp_path / "store")) == answers(store)
    assert not [path for path in tmp_path.iterdir() if path.name != "store"]


@both
def test_an_empty_store_and_one_without_embeddings(make, tmp_path):
    make().save(tmp_path / "empty")
    opened = make.open(tmp_path / "empty")
    assert opened.count_documents() == 0
    opened.write_documents([Document("a", id="1")])
    opened.save(tmp_path / "empty")
    assert [d.id for d in make.open(tmp_path / "empty").search_keywords(["a"])[0]] == ["1"]


def test_an_approximate_index_is_not_built_again(tmp_path):
    store = FaissStore(factory="IVF4,PQ2x4", parameters="nprobe=4", encoder="test encoder")
    rng = np.random.default_rng(0)
    store.write_documents([Document(str(i), embedding=rng.random(4)) for i in range(200)])
    queries = rng.random((5, 4))
    found = [[(d.id, d.score) for d in r] for r in store.search_embeddings(queries)]
    store.save(tmp_path / "store")
    opened = FaissStore.open(tmp_path / "store")
    assert [[(d.id, d.score) for d in r] for r in opened.search_embeddings(queries)] == found


def test_files_of_the_user_are_kept(tmp_path):
    store = filled(MemoryStore)
    store.save(tmp_path / "store")
    (tmp_path / "store/notes.txt").write_text("mine")
    store.save(tmp_path / "store")
    assert (tmp_path / "store/notes.txt").read_text() == "mine"


@both
def test_every_damaged_byte_is_noticed(make, tmp_path):
    filled(make).save(tmp_path / "store")
    rng = np.random.default_rng(1)
    files = sorted(path.name for path in (tmp_path / "store").iterdir())
    assert ("vectors.faiss" in files) == (make is FaissStore)
    for name in files:
        for _ in range(6):
            shutil.rmtree(tmp_path / "copy", ignore_errors=True)
            shutil.copytree(tmp_path / "store", tmp_path / "copy")
            file = tmp_path / "copy" / name
            data = bytearray(file.read_bytes())
            kind = rng.integers(4)
            if kind == 0:
                data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
            elif kind == 1:
                data = data[: rng.integers(len(data))]
            elif kind == 2:
                data += b"x"
            if kind == 3:
                file.unlink()
            else:
                file.write_bytes(data)
            try:
                opened = make.open(tmp_path / "copy")
            except DuonlpError as error:
                assert str(tmp_path / "copy") in str(error)
            else:  # white space in the manifest
                assert name == "store.json" and answers(opened) == answers(filled(make))


@both
def test_what_is_not_a_store_is_refused(make, tmp_path):
    other = FaissStore if make is MemoryStore else MemoryStore
    filled(other).save(tmp_path / "other")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    for name, named in [
        ("other", f"is a {other.__name__}, not a {make.__name__}"),
        ("folder", "not a saved"),
        ("missing", "does not exist"),
    ]:
        with pytest.raises(InputError) as error:
            make.open(tmp_path / name)
        assert named in str(error.value)
    with pytest.raises(DuonlpError):
        make.open(tmp_path / "file")
    with pytest.raises(InputError, match="is a file"):
        filled(make).save(tmp_path / "file")


def test_a_manifest_of_another_version_is_refused(tmp_path):
    from duonlp.retrieval.indexes.files import _hash_contents

    filled(MemoryStore).save(tmp_path / "store")
    file = tmp_path / "store/store.json"
    contents = json.loads(file.read_text())["contents"] | {"version": 2}
    file.write_text(json.dumps({"contents": contents, "sha256": _hash_contents(contents)}))
    with pytest.raises(InputError, match="version 2"):
        MemoryStore.open(tmp_path / "store")


def test_meta_that_is_not_json_is_refused_and_the_old_store_stays(tmp_path):
    store = filled(MemoryStore)
    store.save(tmp_path / "store")
    store.write_documents([Document("a", {"x": object()}, "odd")])
    with pytest.raises(InputError, match="'odd' cannot be saved"):
        store.save(tmp_path / "store")
    assert MemoryStore.open(tmp_path / "store").count_documents() == 40
    assert not [path for path in tmp_path.iterdir() if path.name != "store"]


def test_a_function_that_splits_texts_is_passed_again(tmp_path):
    store = MemoryStore(tokenize=list)
    store.write_documents([Document("abc", id="1"), Document("xyz", id="2")])
    store.save(tmp_path / "store")
    with pytest.raises(InputError, match="pass it"):
        MemoryStore.open(tmp_path / "store")
    opened = MemoryStore.open(tmp_path / "store", tokenize=list)
    assert [d.id for d in opened.search_keywords(["b"])[0]] == ["1"]
    filled(MemoryStore).save(tmp_path / "store")
    with pytest.raises(InputError, match="made without one"):
        MemoryStore.open(tmp_path / "store", tokenize=list)
