"""Zero-shot classification: pairs of tokens, entailment at any index, streams, batches, and errors before anything runs."""

import itertools

import numpy as np
import pytest

from duonlp.errors import InputError
from duonlp.tasks.zero_shot_classification import entailment_scores
from duonlp.util.tokenization import pair_rows
from tests.duonlp.tasks.test_reference import make
from tests.reference import record_pipelines as reference

TASK, NLI = "zero-shot-classification", reference.NLI_LABELS[0]
TEXTS = [*reference.TEXTS, reference.LONG_TEXT]
HYPOTHESES = ["This example is a program.", "It is about weaving flowers and leaves in London.", "a"]


def slow_tokenizers(folder):
    """Return two tokenizers in Python: words of the recorded vocabulary, and bytes."""
    from transformers import ByT5Tokenizer
    from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

    vocabulary = reference.load_tokenizer("wordpiece").get_vocab()
    (folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)), encoding="utf-8")
    return [BertTokenizerLegacy(str(folder / "vocab.txt")), ByT5Tokenizer()]


def assert_pairs(tokenizer, length):
    pairs = pair_rows(tokenizer, TEXTS, HYPOTHESES, length)
    options = {"truncation": "only_first", "max_length": length} if length else {}
    for (i, text), (j, hypothesis) in itertools.product(enumerate(TEXTS), enumerate(HYPOTHESES)):
        try:
            expected = tokenizer(text, hypothesis, return_token_type_ids=True, verbose=False, **options)
        except Exception as error:
            assert "too short" in str(error)  # so Transformers' pipeline does not truncate
            expected = tokenizer(text, hypothesis, return_token_type_ids=True, verbose=False)
        assert pairs[i][j] == dict(expected)


@pytest.mark.parametrize("length", [None, 10, 16, 30, 64])
@pytest.mark.parametrize("changes", [{}, {"padding_side": "left"}, {"truncation_side": "left"}])
@pytest.mark.parametrize("name", reference.TOKENIZERS)
def test_joined_tokens_are_those_of_the_pair(name, changes, length):
    assert_pairs(reference.load_tokenizer(name, **changes), length)


@pytest.mark.parametrize("length", [None, 30, 64])
def test_joined_tokens_of_tokenizers_in_python(length, tmp_path):
    for tokenizer in slow_tokenizers(tmp_path):
        assert not tokenizer.is_fast
        assert_pairs(tokenizer, length)


def test_each_text_is_tokenized_once(monkeypatch):
    pipe, calls = make(TASK, labels=NLI, candidate_labels=["a", "code", "cities"]), []
    backend = type(pipe.tokenizer.backend_tokenizer)

    class Counting:
        def __init__(self, own):
            self.own = own

        def encode_batch(self, texts, **keywords):
            calls.append(list(texts))
            return self.own.encode_batch(texts, **keywords)

        def __getattr__(self, name):
            return getattr(self.own, name)

    from duonlp.util import tokenization

    real = tokenization.private_tokenizer

    @tokenization.contextmanager
    def counted(tokenizer):
        with real(tokenizer) as own:
            assert isinstance(own.backend_tokenizer, backend)
            yield tokenization._with_attributes(own, _tokenizer=Counting(own.backend_tokenizer))

    monkeypatch.setattr(tokenization, "private_tokenizer", counted)
    pipe(TEXTS[:3])
    assert calls == [TEXTS[:3], [f"This example is {label}." for label in ("a", "code", "cities")]]


@pytest.mark.parametrize("multi_label", [False, True])
def test_scores_equal_the_formula(multi_label):
    logits = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    for entailment, contradiction in ((0, 2), (1, 0), (2, 0)):
        scores = entailment_scores(logits, entailment, multi_label)
        powers = np.exp(logits.astype(np.float64))
        yes, no = powers[:, entailment], powers[:, contradiction]
        expected = yes / (yes + no) if multi_label else yes / yes.sum()
        np.testing.assert_allclose(scores, expected, rtol=1e-5)
    large = np.array([[500.0, 0.0], [-500.0, 0.0]], np.float32)
    assert np.isfinite(entailment_scores(large, 0, multi_label)).all()


def test_labels_are_given_as_a_list_a_text_an_argument_or_an_option():
    pipe = make(TASK, labels=NLI)
    expected = pipe(TEXTS[0], candidate_labels=["code", "cities"])
    assert list(expected) == ["sequence", "labels", "scores"] and expected["sequence"] == TEXTS[0]
    assert pipe(TEXTS[0], candidate_labels=" code,, cities ") == expected
    assert pipe(TEXTS[0], ("code", "cities")) == expected
    fixed = make(TASK, labels=NLI, candidate_labels="code, cities")
    assert fixed(TEXTS[0]) == expected and fixed([TEXTS[0]]) == [expected] and fixed([]) == []
    assert fixed(TEXTS[0], candidate_labels="code")["labels"] == ["code"]
    with pytest.raises(InputError, match="takes one positional argument after the texts"):
        pipe(TEXTS[0], ["code"], ["cities"])
    with pytest.raises(InputError, match="and candidate_labels="):
        pipe(TEXTS[0], ["code"], candidate_labels="cities")
    with pytest.raises(InputError, match="got no candidate_labels"):
        pipe(iter(TEXTS))  # not only once it is read


def test_batches_and_streams_give_the_same_results():
    options = {"candidate_labels": ["code", "cities", "a longer label about flowers"], "multi_label": True}
    pipe = make(TASK, labels=NLI, **options)
    expected = pipe(TEXTS)
    for other in (
        make(TASK, labels=NLI, batch_size=1, **options)(TEXTS),
        list(pipe(iter(TEXTS), batch_size=2)),
        [pipe(text) for text in TEXTS],
    ):
        assert [r["labels"] for r in other] == [r["labels"] for r in expected]
        np.testing.assert_allclose([r["scores"] for r in other], [r["scores"] for r in expected], rtol=1e-4)


def test_entailment_is_found_or_named():
    names = ("LABEL_0", "LABEL_1", "LABEL_2")
    with pytest.raises(InputError, match="labels are LABEL_0, LABEL_1, LABEL_2, none of which starts with 'entail'"):
        make(TASK, labels=names)
    named = make(TASK, labels=names, entailment_label="label_2")(TEXTS[0], "code, cities")
    assert named == make(TASK, labels=NLI)(TEXTS[0], "code, cities")
    assert named == make(TASK, labels=names, entailment_label=2)(TEXTS[0], "code, cities")
    with pytest.raises(InputError, match="needs a model with two labels or more, but this one has entailment"):
        make(TASK, labels=["entailment"])


def test_a_hypothesis_without_room_for_the_text():
    pipe = make(TASK, labels=NLI)  # the tokenizer's limit is 64, the model's is 128
    long = "weaves flowers " * 12
    assert pipe(TEXTS[4], [long])["labels"] == [long]  # Transformers does not truncate it either
    with pytest.raises(
        InputError, match=r"input 0 has \d+ tokens, but the model has positions for 128; shorten the label"
    ):
        pipe(TEXTS[4], [long * 6])


def test_texts_may_have_the_name_of_transformers():
    pipe = make(TASK, labels=NLI, candidate_labels="code, cities")
    assert pipe(sequences=reference.TEXTS[:2]) == pipe(reference.TEXTS[:2])
    with pytest.raises(InputError, match="sequences"):
        pipe(reference.TEXTS[0], sequences=reference.TEXTS[1])
