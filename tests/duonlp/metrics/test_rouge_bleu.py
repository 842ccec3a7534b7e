"""ROUGE and BLEU equal those of the libraries, batch by batch; their intervals; invalid inputs."""

import importlib.util
import sys
import warnings

import numpy as np
import pytest

from duonlp.errors import InputError, MissingExtraError
from duonlp.metrics.bleu import Bleu
from duonlp.metrics.bootstrap import Score
from duonlp.metrics.rouge import CachedTokenizer, Rouge

for module in ("rouge_score", "sacrebleu"):
    pytest.importorskip(module)


PREDICTIONS = [
    "The cats were running quickly.\nA dog barked at them .",
    "",
    "Prices rose by 3.5% in 2024, officials said",
    "a b c d e f g",
    "nothing in common",
    "...",
    "Running runners ran; the runner's run.\n\nIt was raining.",
]
ALTERNATIVES = [
    ["Cats run quickly.\nThe dog barks.", "Some cats were quick .\nDogs were barking at the cats."],
    ["Nobody said anything."],
    ["Officials said that prices rose 3.5 percent.", "Prices: up 3.5% in 2024.", "prices rose by 3.5% in 2024"],
    ["a c e g b d f"],
    ["entirely other words"],
    ["One word."],
    ["The runner ran in the rain.", "It rained.\nRunners were running."],
]
ONE = [texts[0] for texts in ALTERNATIVES]


def in_batches(metric, predictions, references, size):
    for start in range(0, len(predictions), size):
        metric.add(predictions[start : start + size], references[start : start + size])
    return metric


@pytest.mark.parametrize("stemmer", [True, False])
@pytest.mark.parametrize("references", [ONE, ALTERNATIVES], ids=["one", "several"])
def test_rouge_equals_rouge_score(stemmer, references):
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ("rouge1", "rouge2", "rouge4", "rougeL", "rougeLsum")
    metric = in_batches(Rouge(kinds, stemmer=stemmer), PREDICTIONS, references, 2)
    scorer = RougeScorer(kinds, use_stemmer=stemmer)
    expected = [
        scorer.score_multi([several] if isinstance(several, str) else several, text)
        for several, text in zip(references, PREDICTIONS, strict=True)
    ]
    scores = metric.compute(resamples=0)
    for kind in kinds:
        examples = np.array([example[kind].fmeasure for example in expected])
        np.testing.assert_array_equal(metric.per_example[kind], examples)
        assert scores[kind] == Score(None, examples.mean(), None)
    assert 0 < scores["rouge2"].value < scores["rougeLsum"].value and metric.per_example["rouge1"][1] == 0


def test_rouge_intervals_equal_rouge_score_on_the_same_draws(monkeypatch):
    from rouge_score import scoring
    from rouge_score.rouge_scorer import RougeScorer

    metric = in_batches(Rouge(), PREDICTIONS, ONE, 3)
    found = metric.compute(confidence=0.9, resamples=130, seed=7)
    rng, scorer = np.random.default_rng(7), RougeScorer(metric.kinds, use_stemmer=True)
    draws = [rng.integers(len(ONE), size=len(ONE)) for _ in range(130)]
    for kind in metric.kinds:
        left = iter(draws)
        monkeypatch.setattr(np.random, "choice", lambda items, size, left=left: next(left))
        aggregator = scoring.BootstrapAggregator(confidence_interval=0.9, n_samples=130)
        for reference, text in zip(ONE, PREDICTIONS, strict=True):
            aggregator.add_scores({kind: scorer.score(reference, text)[kind]})
        theirs = aggregator.aggregate()[kind]
        bounds = (found[kind].low, found[kind].high)
        np.testing.assert_allclose(bounds, (theirs.low.fmeasure, theirs.high.fmeasure), rtol=1e-12)
        assert found[kind].low < found[kind].value < found[kind].high


def test_words_equal_rouge_score():
    from rouge_score.tokenizers import DefaultTokenizer

    for stemmer in (True, False):
        for text in [*PREDICTIONS, "", "Ünïcode İstanbul naïve 中文 don't x_y running RUNNING"]:
            assert CachedTokenizer(stemmer).tokenize(text) == DefaultTokenizer(stemmer).tokenize(text)


@pytest.mark.parametrize(
    "options",
    [{}, {"lowercase": True, "tokenize": "intl"}, {"tokenize": "char", "smooth_method": "add-k", "smooth_value": 0.5},
     {"smooth_method": "floor", "max_ngram_order": 2}, {"smooth_method": "none"}, {"effective_order": True}],
    ids=str,
)  # fmt: skip
def test_bleu_equals_sacrebleu(options):
    from sacrebleu.metrics import BLEU

    for references, count in ((ONE, 1), (ALTERNATIVES, 3)):
        metric = in_batches(Bleu(**options), PREDICTIONS, references, 3)
        lists = [[several] if isinstance(several, str) else several for several in references]
        streams = [[texts[k] if k < len(texts) else None for texts in lists] for k in range(count)]
        theirs = BLEU(**options)
        assert metric.compute(resamples=0)["bleu"].value == theirs.corpus_score(PREDICTIONS, streams).score
        assert metric.signature == str(theirs.get_signature())
        whole, score = theirs.corpus_score(PREDICTIONS, streams), metric.compute(resamples=0)["bleu"]
        for name in ("counts", "totals", "precisions", "bp", "sys_len", "ref_len"):
            assert getattr(score, name) == score.parts[name] == metric.parts[name] == getattr(whole, name)
        one = BLEU(**(options | {"effective_order": True}))
        sentences = [one.sentence_score(text, texts).score for text, texts in zip(PREDICTIONS, lists, strict=True)]
        np.testing.assert_array_equal(metric.per_example["bleu"], sentences)
    assert metric.compute(resamples=0)["bleu"].value > 1


def test_bleu_intervals_come_from_corpus_scores_of_resamples():
    from sacrebleu.metrics import BLEU

    metric = in_batches(Bleu(), PREDICTIONS, ONE, 7)
    found = metric.compute(confidence=0.8, resamples=70, seed=3)["bleu"]
    rng, scores = np.random.default_rng(3), []
    for _ in range(70):
        drawn = rng.integers(len(ONE), size=len(ONE))
        scores.append(BLEU().corpus_score([PREDICTIONS[i] for i in drawn], [[ONE[i] for i in drawn]]).score)
    np.testing.assert_allclose((found.low, found.high), np.percentile(scores, [10, 90]), rtol=1e-12)


@pytest.mark.parametrize("make", [Rouge, Bleu])
def test_the_seed_determines_the_interval(make):
    metric = in_batches(make(), PREDICTIONS, ALTERNATIVES, 4)
    kind = metric.kinds[0]
    assert metric.compute(seed=1) == metric.compute(seed=1) != metric.compute(seed=2)
    wide, narrow = metric.compute(confidence=0.99)[kind], metric.compute(confidence=0.5)[kind]
    assert wide.low < narrow.low < narrow.high < wide.high and wide.value == narrow.value
    other = metric.fresh()
    assert len(other) == 0 and other.options == metric.options and len(metric) == 7


@pytest.mark.parametrize("make", [Rouge, Bleu])
def test_empty_predictions_score_0(make):
    metric = make()
    metric.add(["", " \n"], ["a text", "another"])
    assert set(metric.compute().values()) == {Score(0.0, 0.0, 0.0)}
    assert not any(values.any() for values in metric.per_example.values())


@pytest.mark.parametrize("make", [Rouge, Bleu])
def test_one_example_has_no_interval(make):
    metric = make()
    metric.add(["the same four words"], [["another", "the same four words"]])
    for score in metric.compute().values():
        assert score == (None, pytest.approx(metric.highest), None)


def test_sentences_on_separate_lines():
    if importlib.util.find_spec("sentencex") is None:
        pytest.skip("no sentencex")
    text, reference = "Dr. A. Smith came to the U.S. in May. He left.", "He left. Dr. A. Smith came to the U.S. in May."
    whole, split = Rouge("rougeLsum"), Rouge("rougeLsum", sentences="en")
    lines = "Dr. A. Smith came to the U.S. in May.\nHe left.", "He left.\nDr. A. Smith came to the U.S. in May."
    for metric in (whole, split):
        metric.add([text, lines[0]], [reference, lines[1]])
    assert whole.per_example["rougeLsum"][0] < 1 == whole.per_example["rougeLsum"][1]
    assert split.per_example["rougeLsum"].tolist() == [1, 1] and split.signature.endswith("sentences: en")
    with pytest.raises(InputError):
        Rouge(sentences="no language")
    split.add(["half \ud83d a pair", ""], ["half a pair", "said"])  # models may write unpaired surrogates
    assert split.per_example["rougeLsum"].tolist() == [1, 1, 1, 0]


def test_a_language_without_latin_letters():
    with pytest.warns(UserWarning, match="no characters that ROUGE's tokenizer keeps"):
        plain = Rouge()
        plain.add(["猫が走る", "x"], [["猫が走る"], ["猫", "a"]])
    assert not plain.per_example["rouge1"].any()

    class Characters:
        def tokenize(self, text):
            return list(text)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metric = Rouge(tokenizer=Characters())
        metric.add(["猫が走る"], ["猫が走る"])
    assert metric.compute()["rouge2"].value == 1 and "Characters" in metric.signature


@pytest.mark.parametrize("make", [Rouge, Bleu])
@pytest.mark.parametrize(
    ("predictions", "references", "parts"),
    [
        (["a", "b"], ["a"], ["2 predictions", "1 references"]),
        ([], [], ["no predictions"]),
        (["a"], [], ["no references"]),
        (["a", None], ["a", "b"], ["prediction 1 is None"]),
        (["a"], [3], ["reference 0 is 3"]),
        (["a"], [["b", b"c"]], ["reference 0 contains b'c'"]),
        (["a", "b"], ["c", " \n"], ["reference 1 is empty"]),
        (["a"], [["b", ""]], ["reference 0 is empty"]),
        (["a"], [[]], ["reference 0 is an empty list"]),
        ("a", ["a"], ["predictions are 'a'"]),
        (["a"], "a", ["references are 'a'"]),
        (None, ["a"], ["predictions are None"]),
    ],
)
def test_invalid_examples(make, predictions, references, parts):
    metric = make()
    metric.add(["x"], ["x"])
    with pytest.raises(InputError) as error:
        metric.add(predictions, references)
    assert all(part in str(error.value) for part in parts) and len(metric) == 1


def test_invalid_settings():
    for options in ({"kinds": ("rouge0",)}, {"kinds": ()}, {"kinds": ("rougeL", "rougeL")}, {"kinds": (1,)},
                    {"kinds": "bleu"}, {"tokenizer": str}):  # fmt: skip
        with pytest.raises(InputError, match=r"rouge1 to rouge9|tokenizer is"):
            Rouge(**options)
    for options in ({"tokenize": "14a"}, {"smooth_method": "more"}, {"max_ngram_order": 0}, {"max_ngram_order": True}):
        with pytest.raises(InputError, match=f"{next(iter(options))} is"):
            Bleu(**options)
    metric = Rouge()
    with pytest.raises(InputError, match="has no examples; call add"):
        metric.compute()
    with pytest.raises(InputError, match="has no examples; call add"):
        Bleu().signature  # noqa: B018
    metric.add(["x", "y"], ["x", "z"])
    for options in ({"confidence": 1.0}, {"confidence": 95}, {"confidence": "x"}, {"resamples": -1}, {"resamples": 0.5},
                    {"seed": -1}, {"seed": None}):  # fmt: skip
        with pytest.raises(InputError, match=f"{next(iter(options))} is"):
            metric.compute(**options)


@pytest.mark.parametrize(("make", "module"), [(Rouge, "rouge_score.rouge_scorer"), (Bleu, "sacrebleu.metrics")])
def test_missing_libraries(make, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r'pip install "duonlp\[summarization\]"'):
        make()


def test_line_breaks_of_pegasus():
    lines, marked = "the cat sat\nthe dog ran far", "the cat sat<n>the dog ran far"
    reference = "the dog ran far\nthe cat sat"
    for sentences in (None, "en"):
        scores = []
        for prediction, summary in ((lines, reference), (marked, reference), (lines, reference.replace("\n", "<n>"))):
            metric = Rouge(sentences=sentences)
            metric.add([prediction], [[summary]])
            scores.append({name: score.value for name, score in metric.compute(resamples=10).items()})
        assert scores[0] == scores[1] == scores[2]
        assert scores[0]["rougeLsum"] > scores[0]["rougeL"]
