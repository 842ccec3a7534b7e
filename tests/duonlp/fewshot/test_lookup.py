"""Nearest neighbors: votes against loops, the search of k and m, indexes, files and bad input."""

import json
from weakref import WeakKeyDictionary

import numpy as np
import pytest

from duonlp.data import LabelledTexts
from duonlp.errors import CheckpointError, InputError
from duonlp.fewshot import FewShotData, load_classifier, method_class
from duonlp.fewshot.lookup import (
    Lookup,
    NeighborIndex,
    best_clusters,
    leave_one_out,
    search_cost,
    search_votes,
)
from duonlp.pipelines import TextEncoder, embed, embedding, make_pipeline
from tests.cases import Case
from tests.reference import record_pipelines as reference

BERT = {
    "model_type": "bert", "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 40,
    "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
TEXTS = [
    "Ada wrote the first program.",
    "The loom weaves.",
    "A program is a text.",
    "Weaving needs a loom.",
    "Ada met Charles.",
]
MULTI = np.array([[1, 0, 1], [0, 1, 0], [1, 0, 0], [0, 1, 0], [1, 0, 1]], np.float32)
NAMES = ("code", "craft", "people")


def vectors(count: int, size: int = 8, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((count, size), np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """Return the folder of a tiny random sentence encoder with two modules."""
    tokenizer = reference.load_tokenizer("wordpiece")
    folder = Case("base", BERT | {"vocab_size": len(tokenizer)}, "base").write(tmp_path_factory.mktemp("encoder"))
    tokenizer.save_pretrained(folder)
    types = (("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))
    modules = [{"type": f"sentence_transformers.models.{name}", "path": path} for name, path in types]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean"}')
    (folder / "notes.onnx").write_text("not needed")
    return folder


def test_search_is_exact_and_refuses_a_k_above_the_number_of_vectors():
    x, queries = vectors(50), vectors(7, seed=1)
    expected = np.argsort(-(queries @ x.T), axis=1, kind="stable")
    numbers, products = NeighborIndex(x).search(queries, 5)
    np.testing.assert_array_equal(numbers, expected[:, :5])
    np.testing.assert_allclose(products, np.take_along_axis(queries @ x.T, numbers, 1), rtol=1e-5)
    every = NeighborIndex(x, "ivf", probes=50)
    np.testing.assert_array_equal(every.search(queries, 5)[0], expected[:, :5])
    few = NeighborIndex(x, "ivf", clusters=25, probes=1)  # a cluster has two vectors, so all are compared
    np.testing.assert_array_equal(few.search(queries, 20)[0], expected[:, :20])
    with pytest.raises(InputError, match="k is 51, but the index has 50 vectors; pass a k of at most 50"):
        few.search(queries, 51)
    with pytest.raises(InputError, match="clusters is 51, but there are 50 vectors"):
        NeighborIndex(x, "ivf", clusters=51)


def test_the_cost_rule():
    assert search_cost(10_000, 100) == 200
    assert best_clusters(10_000) == 100 and best_clusters(10_000, probes=4) == 200 and best_clusters(2, 99) == 2
    costs = [search_cost(5000, clusters, 3) for clusters in range(3, 5001)]
    assert np.argmin(costs) + 3 == best_clusters(5000, 3)
    assert NeighborIndex(vectors(400), "ivf").clusters == 20


def test_others_of_a_vector_leave_it_out_even_among_equals():
    x = np.concatenate([np.repeat(vectors(1), 4, 0), vectors(3, seed=1)])
    others = leave_one_out(NeighborIndex(x), x, 2)
    assert others.shape == (7, 2) and not (others == np.arange(7)[:, None]).any()
    assert set(others[0]) < {1, 2, 3}


@pytest.mark.parametrize("single", [False, True])
def test_heat_maps_equal_scikit_learn(single):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(3)
    known, labels = (rng.random((n, 4)) for n in (30, 20))
    known, labels = (a.argmax(1).astype(np.int32) if single else (a < 0.4).astype(np.float32) for a in (known, labels))
    neighbors = np.stack([rng.permutation(30)[:5] for _ in range(20)])
    search = search_votes(neighbors, known, labels)
    table, true = (np.eye(4)[a] if single else a for a in (known, labels))
    for k in range(1, 6):
        for m in range(1, 6):
            if m > k:
                assert np.isnan(search.micro_f1[k - 1, m - 1])
                continue
            votes = table[neighbors[:, :k]].sum(1)
            predicted = votes >= m
            if single:  # of equals, the label whose neighbors are nearer
                ranks = np.array(
                    [[sum(k - r for r in range(k) if known[row[r]] == c) for c in range(4)] for row in neighbors]
                )
                predicted &= (votes + ranks / 1e4).argmax(1)[:, None] == np.arange(4)
            for name, scores in (("micro", search.micro_f1), ("macro", search.macro_f1)):
                expected = metrics.f1_score(true, predicted, average=name, zero_division=0)
                assert scores[k - 1, m - 1] == pytest.approx(expected, abs=1e-6)
    best = search.best("micro_f1")
    assert search.micro_f1[best[0] - 1, best[1] - 1] == np.nanmax(search.micro_f1)
    assert search.best("macro_f1", k=3)[0] == 3 and search.best("macro_f1", m=2)[1] == 2


@pytest.mark.parametrize("labels", [MULTI, np.array([0, 1, 0, 1, 2], np.int32)], ids=["multi", "single"])
@pytest.mark.parametrize("package", ["jaxnlp", "tfnlp"])
def test_fit_scores_and_files(package, labels, encoder, tmp_path):
    engine = pytest.importorskip(package)
    data = FewShotData(LabelledTexts(TEXTS, labels, NAMES))
    classifier = method_class("lookup")(encoder).fit(engine, data)
    assert (classifier.multi_label, classifier.label_names) == (labels.ndim == 2, NAMES)
    assert classifier.search.micro_f1.shape == (4, 4)
    scores, shares = classifier.scores(TEXTS[1:3]), classifier.shares(TEXTS[1:3])
    assert scores.dtype == np.float32 and scores.shape == (2, 3)
    if labels.ndim == 2:
        np.testing.assert_array_equal(scores >= 0.5, classifier.predict(TEXTS[1:3]))
        np.testing.assert_array_equal(scores >= 0.5, shares >= classifier.m / classifier.k - 1e-6)
    else:
        np.testing.assert_allclose(scores, shares, atol=1e-4)
        np.testing.assert_allclose(scores.sum(1), 1, rtol=1e-6)
    for k, m, expected in ((1, 1, MULTI[1]), (5, 5, np.array([0.3, 0.2, 0.2]))):
        fixed = Lookup(encoder, k=k, m=m, index="ivf").fit(engine, data)
        if labels.ndim == 2:
            np.testing.assert_allclose(fixed.scores(TEXTS[1:2])[0], expected, atol=1e-6)
    classifier.save(tmp_path / "saved")
    classifier.save(tmp_path / "saved")  # onto itself
    loaded = load_classifier(tmp_path / "saved", engine)
    loaded.save(tmp_path / "saved")  # whose encoder is read from there
    loaded = load_classifier(tmp_path / "saved", engine)
    np.testing.assert_allclose(loaded.scores(TEXTS[1:3]), scores, atol=1e-6)
    np.testing.assert_array_equal(loaded.search.macro_f1, classifier.search.macro_f1)
    assert (tmp_path / "saved" / "encoder" / "1_Pooling" / "config.json").exists()
    assert not (tmp_path / "saved" / "encoder" / "notes.onnx").exists()
    with pytest.raises(InputError, match="lookup, which runs a model"):
        load_classifier(tmp_path / "saved")
    settings = json.loads((tmp_path / "saved" / "classifier.json").read_text())
    for changes in ({"k": 6}, {"m": 5, "k": 4}, {"clusters": 6}):
        changed = settings | {"settings": settings["settings"] | changes}
        (tmp_path / "saved" / "classifier.json").write_text(json.dumps(changed))
        with pytest.raises(CheckpointError, match="do not fit each other"):
            load_classifier(tmp_path / "saved", engine)


def test_bad_settings(encoder):
    data = FewShotData(LabelledTexts(TEXTS, MULTI, NAMES))
    with pytest.raises(InputError, match="k is 6, but there are 5 labeled texts"):
        Lookup(encoder, k=6).fit(None, data)
    with pytest.raises(InputError, match="m is 3, but only k = 2"):
        Lookup(encoder, k=2, m=3)
    with pytest.raises(InputError, match="clusters is 9, but there are 5"):
        Lookup(encoder, index="ivf", clusters=9).fit(None, data)
    with pytest.raises(InputError, match="at least one"):
        Lookup(encoder).fit(None, FewShotData(LabelledTexts([], np.zeros((0, 3), np.float32), NAMES)))
    for settings, message in (
        ({"pooling": "median"}, "pooling"),
        ({"index": "hnsw"}, "index"),
        ({"maximize": "f1"}, "maximize"),
    ):
        with pytest.raises(InputError, match=message):
            Lookup(encoder, **settings)


def test_one_labeled_text(encoder):
    jaxnlp = pytest.importorskip("jaxnlp")
    one = FewShotData(LabelledTexts(TEXTS[:1], MULTI[:1], NAMES))
    classifier = Lookup(encoder).fit(jaxnlp, one)
    assert (classifier.k, classifier.m, classifier.search) == (1, 1, None)
    np.testing.assert_array_equal(classifier.scores(TEXTS), np.repeat(MULTI[:1], 5, 0))


@pytest.mark.parametrize("pooling", ["mean", "first", "last", "max"])
def test_poolings_of_one_text(pooling):
    tokenizer = reference.load_tokenizer("gpt2")  # without a padding token
    cfg = Case(
        "gpt2", {"model_type": "gpt2", "n_embd": 3, "n_layer": 1, "n_head": 1, "vocab_size": len(tokenizer)}, "base"
    )

    def forward(batch):
        ids = batch["input_ids"].astype(np.float32)
        return {"last_hidden_state": np.stack([ids, ids**0.5, -ids], -1)}

    pipe = make_pipeline("feature-extraction", forward, tokenizer, cfg.config, batch_size=2)
    got = embed(pipe, [*TEXTS, "a"], pooling, normalize=False, max_length=7)
    for text, vector in zip([*TEXTS, "a"], got, strict=True):
        ids = np.array(tokenizer(text, truncation=True, max_length=7)["input_ids"], np.float32)
        states = np.stack([ids, ids**0.5, -ids], -1)
        expected = {"mean": states.mean(0), "first": states[0], "last": states[-1], "max": states.max(0)}[pooling]
        np.testing.assert_allclose(vector, expected, rtol=1e-5)
    with pytest.raises(InputError, match="pooling is 'sum'"):
        embed(pipe, TEXTS, "sum")
    with pytest.raises(InputError, match="embed got"):
        embed("folder", TEXTS)
    assert embed(pipe, []).shape == (0, 3)


def test_pooling_of_a_sentence_encoder_can_be_replaced(encoder):
    jaxnlp = pytest.importorskip("jaxnlp")
    own, first = TextEncoder(jaxnlp, encoder), TextEncoder(jaxnlp, encoder, "first")
    np.testing.assert_allclose(embed(own.pipe, TEXTS, "mean"), own(TEXTS), atol=1e-6)
    np.testing.assert_allclose(embed(own.pipe, TEXTS, "first"), first(TEXTS), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(first(TEXTS), axis=1), 1, rtol=1e-6)


def test_vectors_of_the_same_texts_are_computed_once(encoder, monkeypatch):
    jaxnlp = pytest.importorskip("jaxnlp")
    computed = []

    def counted(pipe, texts, *args, **options):
        computed.append(list(texts))
        return embed(pipe, texts, *args, **options)

    monkeypatch.setattr(embedding, "embed", counted)
    monkeypatch.setattr(embedding, "_cached_vectors", WeakKeyDictionary())
    first = TextEncoder(jaxnlp, encoder, max_length=7)
    vectors = first([*TEXTS, TEXTS[0]])
    np.testing.assert_array_equal(vectors[0], vectors[-1])
    np.testing.assert_array_equal(TextEncoder(jaxnlp, encoder, max_length=7)(TEXTS[::-1]), vectors[:-1][::-1])
    assert computed == [list(TEXTS)]
    TextEncoder(jaxnlp, encoder, "last", max_length=7)(TEXTS[:1])  # another pipeline, another pooling, another length
    TextEncoder(jaxnlp, encoder, max_length=6)(TEXTS[:1])
    assert computed[1:] == [[TEXTS[0]]] * 2
    with pytest.raises(InputError, match="text"):
        first([TEXTS[0], " "])
    monkeypatch.setattr(embedding, "CACHED_BYTES", 2 * 4 * first.size)
    for texts in (TEXTS[:3], TEXTS[1:3], TEXTS[:1]):  # at most two are kept, the last used
        np.testing.assert_allclose(first(texts), [vectors[TEXTS.index(text)] for text in texts], atol=1e-6)
    assert computed[-1] == [TEXTS[0]] and len(embedding._cached_vectors[first.pipe]) == 2


def test_heat_maps_are_plotted(tmp_path):
    pytest.importorskip("matplotlib")
    search = search_votes(np.array([[0, 1], [1, 0]]), MULTI[:2], MULTI[:2])
    search.plot(tmp_path / "maps.png")
    assert (tmp_path / "maps.png").stat().st_size > 1000
    with pytest.raises(InputError, match=r"ends in '\.txt'"):
        search.plot(tmp_path / "maps.txt")
