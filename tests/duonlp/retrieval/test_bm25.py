"""Keyword scores are those of the published formulas, and an index that grew is the one that is built at once."""

import math
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from duonlp.errors import InputError
from duonlp.retrieval import BM25Options
from duonlp.retrieval.indexes import BM25Index
from duonlp.retrieval.indexes.bm25 import METHODS
from duonlp.retrieval.indexes.ranking import best

bm25s = pytest.importorskip("bm25s")


def random_texts(rng, count, words=40):
    chances = 1 / np.arange(1, words + 1)
    return [
        " ".join(f"w{w}" for w in rng.choice(words, rng.integers(0, 30), p=chances / chances.sum()))
        for _ in range(count)
    ]


def index_of(texts, **options):
    index = BM25Index(BM25Options(**options))
    index.update(np.ones(0, bool), texts)
    return index


def all_scores(index, query):
    numbers, scores = index.search(query, len(index), fill=True)
    result = np.empty(len(index), np.float32)
    result[numbers] = scores
    return result


QUERIES = ["w0 w3 w7", "w1 w1 w30", "w39", "unknown w5", "W2 w2!"]


@pytest.mark.parametrize("method", ["lucene", "robertson", "atire", "bm25l", "bm25+"])
@pytest.mark.parametrize(("k1", "b"), [(1.2, 0.75), (1.5, 0.3), (0.9, 0.0)])
def test_scores_are_those_of_bm25s(method, k1, b):
    texts = random_texts(np.random.default_rng(0), 80)
    delta = {"bm25l": 0.5, "bm25+": 1.0}.get(method, 0.0)
    theirs = bm25s.BM25(k1=k1, b=b, delta=delta, method=method)
    theirs.index([text.split() for text in texts], show_progress=False)
    index = index_of(texts, method=method, k1=k1, b=b)
    for query in QUERIES:
        words = [word for word in query.lower().replace("!", "").split() if word in theirs.vocab_dict]
        np.testing.assert_allclose(all_scores(index, query), theirs.get_scores(words), rtol=2e-6, atol=2e-6)


def test_scores_are_those_of_rank_bm25():
    rank_bm25 = pytest.importorskip("rank_bm25")
    texts = random_texts(np.random.default_rng(1), 80)
    tokens = [text.split() for text in texts]
    query = "w0 w3 w7 w30"
    plus = rank_bm25.BM25Plus(tokens, k1=1.4, b=0.6, delta=0.8)
    ours = all_scores(index_of(texts, method="bm25+", k1=1.4, b=0.6, delta=0.8), query)
    np.testing.assert_allclose(ours, plus.get_scores(query.split()), rtol=1e-5)


def test_tf_idf_is_the_cosine_that_scikit_learn_defines():
    texts = random_texts(np.random.default_rng(2), 60)
    counts = [Counter(text.split()) for text in texts]
    words = sorted(set().union(*counts))
    frequency = {word: sum(word in count for count in counts) for word in words}
    weight = {word: math.log((1 + len(texts)) / (1 + frequency[word])) + 1 for word in words}

    def vector(count):
        values = np.array([count[word] * weight[word] for word in words])
        return values / max(np.linalg.norm(values), 1e-30)

    matrix = np.array([vector(count) for count in counts])
    for query in QUERIES:
        expected = matrix @ vector(Counter(query.lower().replace("!", "").split()))
        np.testing.assert_allclose(all_scores(index_of(texts, method="tf-idf"), query), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_an_index_that_grew_and_shrank_is_the_one_built_at_once(method):
    rng = np.random.default_rng(3)
    index, present = BM25Index(BM25Options(method=method)), []
    for _ in range(12):
        kept = rng.random(len(present)) < 0.7
        added = random_texts(rng, int(rng.integers(0, 25)), words=int(rng.integers(5, 200)))
        index.update(kept, added)
        present = [text for text, stays in zip(present, kept, strict=True) if stays] + added
        if not present:
            continue
        rebuilt = index_of(present, method=method)
        assert set(index.vocabulary) == set(rebuilt.vocabulary)
        for query in (*QUERIES, "w3 w100 w150 w0"):
            numbers, scores = index.search(query, 10)
            expected_numbers, expected = rebuilt.search(query, 10)
            assert numbers.tolist() == expected_numbers.tolist()
            np.testing.assert_array_equal(scores, expected)


@pytest.mark.parametrize("method", METHODS)
def test_a_filter_does_not_change_scores_or_order(method):
    rng = np.random.default_rng(4)
    index = index_of(random_texts(rng, 300), method=method)
    for count in (0, 1, 7, 15, 150, 300):  # few are looked up, many are selected
        allowed = np.sort(rng.choice(300, count, replace=False))
        for query in QUERIES:
            for fill in (False, True):
                numbers, scores = index.search(query, 300, fill=fill)
                passes = np.isin(numbers, allowed)
                found, found_scores = index.search(query, 20, allowed, fill=fill)
                assert found.tolist() == numbers[passes][:20].tolist()
                np.testing.assert_array_equal(found_scores, scores[passes][:20])


def test_only_texts_with_a_word_of_the_query_are_found():
    index = index_of(["a b", "b c", "c d", ""], method="bm25+")
    assert index.search("a", 10)[0].tolist() == [0]
    assert index.search("a", 3, fill=True)[0].tolist() == [0, 3, 1]
    assert index.search("x", 10)[0].tolist() == []
    assert index.search("", 2, fill=True)[0].tolist() == [3, 0]
    assert index.search("", 2, np.array([2, 3]), fill=True)[0].tolist() == [3, 2]


def test_words_that_weigh_nothing_are_found():
    for method in ("robertson", "atire"):  # their weight of a word of all texts is 0
        index = index_of(["a", "a b", "a b c"], method=method)
        assert index.search("a", 2)[0].tolist() == [0, 1]
        assert index.search("c a", 5)[0].tolist() == [2, 0, 1]
        assert index.search("a", 5, np.array([1]))[0].tolist() == [1]
        assert index.search("x", 5)[0].tolist() == []


def test_words_without_spaces_are_found():
    index = index_of(["東京は日本の首都です", "大阪は西にあります", "北京是中国的首都"])
    assert index.search("東京はどこですか", 3)[0].tolist()[0] == 0 and index.search("中国", 3)[0].tolist()[0] == 2


def test_only_empty_texts():
    for method in METHODS:
        assert index_of(["", "!"], method=method).search("a", 5)[0].tolist() == []


def test_words():
    assert BM25Options().tokenizer()("The cat's Größe_2, a 東京タ1 서울!") == [
        "the", "cat", "s", "größe_2", "a", "東", "京", "タ", "1", "서울",
    ]  # fmt: skip
    assert BM25Options(stop_words="english").tokenizer()("the battery of it") == ["battery"]
    assert BM25Options(stop_words=["The"], lowercase=False).tokenizer()("The the") == ["the"]
    assert BM25Options(pattern=r"(\w\w)\w*").tokenizer()("abc d ef") == ["ab", "ef"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"method": "bm25"}, "'bm25' is not one of"),
        ({"k1": -1}, "k1 of BM25 is -1"),
        ({"k1": float("nan")}, "k1 of BM25 is nan"),
        ({"b": 1.5}, "b of BM25 is 1.5; expected a number from 0 to 1"),
        ({"b": True}, "b of BM25 is True"),
        ({"delta": 1}, "delta has no effect"),
        ({"pattern": "("}, "not a regular expression"),
        ({"pattern": "(a)(b)"}, "2 groups"),
        ({"stop_words": "german"}, "'german' is not one of english"),
        ({"stop_words": [1]}, "stop_words"),
        ({"lowercase": "no"}, "lowercase"),
    ],
)
def test_invalid_options_are_refused(options, named):
    with pytest.raises(InputError) as error:
        BM25Options(**options)
    assert named in str(error.value)


def test_the_best_are_those_of_a_stable_sort():
    rng = np.random.default_rng(5)
    for _ in range(200):
        scores = rng.integers(0, 5, rng.integers(1, 40)).astype(np.float32)
        order = np.argsort(-scores, kind="stable")
        k, above = int(rng.integers(1, 45)), float(rng.integers(-1, 5))
        assert best(scores, k).tolist() == order[:k].tolist()
        assert best(scores, k, above).tolist() == [i for i in order if scores[i] > above][:k]


@pytest.mark.parametrize("before", ["", "import jax; "])
def test_bm25s_does_not_start_jax(before):
    code = (
        f"{before}from duonlp.retrieval import Document, MemoryStore; import sys\n"
        "s = MemoryStore(); s.write_documents([Document('a')]); s.search_keywords(['a'])\n"
        "assert 'bm25s' in sys.modules\n"
        "if 'jax' in sys.modules:\n"
        "    import jax.lax\n"
        "    from jax._src import xla_bridge\n"
        "    print('started' if xla_bridge.backends_are_initialized() else 'idle')\n"
        "else:\n    print('absent')\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ("idle" if before else "absent"), result.stderr
