"""Retrieval metrics equal trec_eval's, ties and grades included."""

import numpy as np
import pytest

from duonlp.errors import InputError
from duonlp.metrics.retrieval import query_scores, retrieval_scores

KS = (1, 3, 5, 10, 20)


def oracle(run, qrels):
    """Return {query: {our name: score}} by pytrec_eval, MRR@k from runs of k documents."""
    trec = pytest.importorskip("pytrec_eval")
    names = {"recall": "recall", "precision": "P", "map": "map_cut", "ndcg": "ndcg_cut"}
    cuts = ",".join(map(str, KS))
    found = trec.RelevanceEvaluator(qrels, {f"{name}.{cuts}" for name in names.values()}).evaluate(run)
    scores = {
        q: {f"{ours}@{k}": row[f"{name}_{k}"] for ours, name in names.items() for k in KS} for q, row in found.items()
    }
    for k in KS:
        best = {q: sorted(docs, key=lambda d: (np.float32(docs[d]), d), reverse=True)[:k] for q, docs in run.items()}
        cut = {q: {d: -float(i) for i, d in enumerate(docs)} for q, docs in best.items()}
        for q, row in trec.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(cut).items():
            scores[q][f"mrr@{k}"] = row["recip_rank"]
    return scores


def test_scores_equal_those_of_trec_eval():
    rng = np.random.default_rng(0)
    run, qrels = {}, {}
    for q in range(150):
        ids = [f"d{i}" for i in rng.permutation(40)[: rng.integers(1, 35)]]
        scores = rng.integers(0, 6, len(ids)) if q % 2 else rng.normal(size=len(ids))  # half of them with many ties
        run[f"q{q}"] = {name: float(score) for name, score in zip(ids, scores, strict=True)}
        qrels[f"q{q}"] = {f"d{i}": int(rng.integers(-1, 4)) for i in rng.permutation(40)[: rng.integers(1, 12)]}
    expected, got = oracle(run, qrels), query_scores(run, qrels, KS)
    for name, values in got.items():
        assert values.tolist() == [expected[q][name] for q in run], name
    means = retrieval_scores(run, qrels, KS, skip_empty=False)
    for name, score in means.items():
        assert score.value == pytest.approx(np.mean([expected[q][name] for q in run]), abs=1e-12)


def test_a_list_is_a_ranking_and_queries_without_relevant_documents_are_left_out():
    rankings, relevant = [["a", "b", "c"], ["x"], []], [{"b"}, set(), {"z"}]
    scores = retrieval_scores(rankings, relevant, (1, 2))
    assert scores["recall@1"].value == 0 and scores["recall@2"].value == 0.5 and scores["mrr@2"].value == 0.25
    assert retrieval_scores(rankings, relevant, (2,), skip_empty=False)["recall@2"].value == pytest.approx(1 / 3)
    assert scores["recall@1"].low is None
    scores = retrieval_scores([["a"], ["b"]] * 20, [["a"]] * 40, (1,), resamples=200)
    low, value, high = scores["recall@1"]
    assert low < value == 0.5 < high


@pytest.mark.parametrize(
    ("rankings", "relevant", "k", "words"),
    [
        ([["a", "a"]], [["a"]], (1,), "'a' twice"),
        (["abc"], [["a"]], (1,), "a list of document ids"),
        ([["a"]], ["a"], (1,), "a set of document ids"),
        ([["a"]], [["a"]], (0,), "k contains 0"),
        ([["a"]], [["a"]], (), "k is empty"),
        ([["a"]], [["a"], ["b"]], (1,), "1 rankings"),
        ({"q": ["a"]}, {"r": ["a"]}, (1,), "'q', 'r'"),
        ({"q": ["a"]}, [["a"]], (1,), "the other a list"),
        ([{"a": float("nan")}], [["a"]], (1,), "NaN"),
        ([["a"]], [{"a": float("inf")}], (1,), "grade of document 'a'"),
        ([["a"]], [[]], (1,), "no query has a relevant document"),
        ([], [], (1,), "no rankings"),
    ],
)
def test_invalid_input_is_refused(rankings, relevant, k, words):
    with pytest.raises(InputError, match=words):
        retrieval_scores(rankings, relevant, k)
