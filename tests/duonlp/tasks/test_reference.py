"""Compare every task's results with those of Transformers' pipelines, recorded by tests/reference/record_pipelines.py."""

import warnings

import numpy as np
import pytest

from duonlp.architectures import config_from_hf
from duonlp.pipelines.pipeline import Pipeline, make_pipeline
from duonlp.tasks.sentence_embedding import pool
from tests.reference import record_pipelines as reference

TOKENIZERS = ("wordpiece", "bpe", "unigram")
FORWARDS = {
    "feature-extraction": lambda model: model,
    "question-answering": lambda model: model,
    "token-classification": lambda model: model.tag,
    "text-classification": lambda model: model.classify,
    "zero-shot-classification": lambda model: model.classify,
    "fill-mask": lambda model: model.fill,
    "text-generation": lambda model: model.generate,
}


def make(task: str, tokenizer: str = "wordpiece", labels=reference.LABELS, problem=None, **options) -> Pipeline:
    """Return our pipeline around the model of the recorded results."""
    tokenizer = reference.load_tokenizer(tokenizer)
    hf = {
        "model_type": "bert", "vocab_size": len(tokenizer), "hidden_size": 16, "num_attention_heads": 2,
        "num_hidden_layers": 1, "intermediate_size": 8, "max_position_embeddings": 2 * reference.MAX_POSITIONS,
        "id2label": {str(i): label for i, label in enumerate(labels)}, "problem_type": problem,
    }  # fmt: skip
    if task == "text-generation":
        end = tokenizer.eos_token_id
        hf = {
            "model_type": "gpt2", "vocab_size": len(tokenizer), "n_positions": reference.MAX_POSITIONS, "n_embd": 16,
            "n_layer": 1, "n_head": 2, "eos_token_id": end, "bos_token_id": end,
        }  # fmt: skip
    forward = FORWARDS[task](reference.NumpyModel(len(tokenizer), len(labels)))
    return make_pipeline(task, forward, tokenizer, config_from_hf(hf), **options)


NEW_KEYS = {"logit", "null_gap"}
"""What our answers have besides Transformers' keys."""


def assert_same(ours, theirs, tolerance=1e-5):
    """Assert the same nesting, the same keys in order, equal texts and integers, and scores within ``tolerance``."""
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key in theirs:
            assert_same(ours[key], theirs[key], tolerance)
    elif isinstance(theirs, list):
        assert isinstance(ours, list) and len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert_same(a, b, tolerance)
    elif isinstance(theirs, float):
        assert type(ours) is float and abs(ours - theirs) <= tolerance * max(1, abs(theirs))
    else:
        assert type(ours) is type(theirs) and ours == theirs


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "target|.*were truncated")
        yield


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_token_classification(tokenizer, batch_size):
    pipe = make("token-classification", tokenizer, batch_size=batch_size)
    cases = [case for case in reference.load_reference("token_classification") if case["tokenizer"] == tokenizer]
    assert len(cases) > 40
    for case in cases:
        assert_same(pipe(case["input"], **case["options"]), case["result"])


def test_text_classification():
    for case in reference.load_reference("text_classification"):
        labels = [f"L{i}" for i in range(case["labels"])]
        pipe = make("text-classification", labels=labels, problem=case["problem"])
        assert_same(pipe(case["input"], **case["options"]), case["result"])


def test_zero_shot_classification():
    for names in reference.NLI_LABELS:
        pipe = make("zero-shot-classification", labels=names, batch_size=4)
        cases = [c for c in reference.load_reference("zero_shot_classification") if tuple(c["labels"]) == names]
        assert len(cases) == 15
        for case in cases:
            if case["input"] != "long":
                assert_same(pipe(case["input"], **case["options"]), case["result"])
                continue
            (result,) = pipe([reference.LONG_TEXT], **case["options"])  # truncated
            assert result.pop("sequence") == reference.LONG_TEXT
            assert_same([result], case["result"])


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_fill_mask(tokenizer):
    pipe = make("fill-mask", tokenizer)
    for case in reference.load_reference("fill_mask"):
        if case["tokenizer"] == tokenizer:
            assert_same(pipe(case["input"], **case["options"]), case["result"])


def test_feature_extraction():
    pipe = make("feature-extraction")
    for case in reference.load_reference("feature_extraction"):
        assert_same(pipe(case["input"]), case["result"])
        tensors = pipe(case["input"], return_tensors=True)
        for array, nested in zip(
            *((tensors, case["result"]) if isinstance(tensors, list) else ([tensors], [case["result"]]))
        ):
            assert array.dtype == np.float32 and np.abs(array - np.array(nested)).max() < 1e-5


def test_text_generation():
    pipe = make("text-generation", "gpt2", max_new_tokens=12)
    for case in reference.load_reference("text_generation"):
        assert_same(pipe(case["input"], **case["options"]), case["result"])


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_question_answering(tokenizer):
    pipe = make("question-answering", tokenizer)
    for case in reference.load_reference("question_answering"):
        if case["tokenizer"] != tokenizer:
            continue
        number = case["input"]
        inputs = reference.QUESTIONS[number] if isinstance(number, int) else reference.QUESTIONS[: len(number)]
        assert_same(without_new_keys(pipe(inputs, **case["options"])), capped(case["result"]))


def capped(answers):
    """Return Transformers' answers with the sums of overlapping windows capped at 1, in the same order."""
    if isinstance(answers, list):
        return [capped(answer) for answer in answers]
    return answers | {"score": min(answers["score"], 1.0)}


def without_new_keys(answers):
    """Return answers with Transformers' keys only."""
    if isinstance(answers, list):
        return [without_new_keys(answer) for answer in answers]
    assert all(type(answers[key]) is float for key in NEW_KEYS)
    return {key: value for key, value in answers.items() if key not in NEW_KEYS}


def test_pooling():
    random = np.random.RandomState(0)
    hidden = random.normal(size=(3, 5, 4)).astype(np.float32)
    for case in reference.load_reference("pooling"):
        mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]], np.float32)[: len(case["result"])]
        mask[:, : case["skipped"]] = 0
        ours = pool(hidden[: len(mask)], mask, tuple(case["modes"]))
        assert np.abs(ours - np.array(case["result"])).max() < 1e-5, case["modes"]
