"""The choice and the truncation of in-context examples, the prompts, and bad settings; without a framework."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from duonlp.errors import InputError
from duonlp.fewshot import FewShotData
from duonlp.fewshot.in_context import InContext, choose_examples, fair_length, label_tokens, prompt_ids, truncated
from duonlp.generation.tree import label_groups
from tests.intents import LABELS
from tests.prompts import labelled

GPT2 = Path(__file__).parents[2] / "reference/pipelines/gpt2.json"


def gpt2_tokenizer():
    backend = Tokenizer.from_str(json.dumps(json.loads(GPT2.read_text())))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")


@pytest.mark.parametrize("multi_label", [False, True])
def test_examples_are_balanced_and_determined_by_the_seed(multi_label):
    labels = np.array([0] * 20 + [1] * 3 + [2], np.int32)
    if multi_label:
        labels = np.eye(3, dtype=np.float32)[labels]
        labels[5] = 0  # a text without labels
    rows = choose_examples(labels, 6, seed=1)
    counts = labels[rows].sum(0) if multi_label else np.bincount(labels[rows], minlength=3)
    assert len(set(rows)) == 6 and counts[2] == 1 and 2 <= counts[1] <= 3 and counts[0] >= 2 - multi_label
    assert rows == choose_examples(labels, 6, seed=1) != choose_examples(labels, 6, seed=2)
    assert not multi_label or 5 in rows
    assert sorted(choose_examples(labels, 24, seed=0)) == list(range(24))


def test_the_longest_texts_are_truncated_first():
    assert fair_length([3, 10, 50, 80], 63) == 25
    assert fair_length([3, 4], 100) == 4 and fair_length([5, 5], 1) == 0 and fair_length([], 5) == 0
    own = gpt2_tokenizer()
    (cut,) = truncated(own, ["  the model and the text of the words  "], 4)
    assert "the model and".startswith(cut[:5]) and len(own(cut)["input_ids"]) <= 4
    assert truncated(own, ["the"], 0) == [""]


def test_labels_have_the_tokens_that_follow_the_template():
    own = gpt2_tokenizer()
    for word, ids in zip(("the", "model"), label_tokens(own, "Text: {text}\nLabel: ", ("the", "model")), strict=True):
        whole = own(f"Text: a\nLabel: {word}")["input_ids"]
        assert whole == [*prompt_ids(own, "Text: a\nLabel:").tolist(), *ids]
    with pytest.raises(InputError, match="'the' and 'the' have the same tokens"):
        label_tokens(own, "{text}: ", ("the", "the"))


def test_labels_share_rows_unless_attention_has_a_window():
    words = [(1,), (2, 3, 4), (5, 6), (7, 8, 9)]
    full, local = (SimpleNamespace(layers=SimpleNamespace(windows=windows)) for windows in ((None,), (None, 8)))
    assert label_groups(full, words, 100) == [[0, 1, 2, 3]]
    assert label_groups(full, words, 3) == [[0, 1, 2], [3]]
    assert label_groups(local, words, 100) == [[0], [1], [2], [3]]


def test_bad_settings():
    for template in ("{text}: ", "{label} {text}", "{text}{text} {label}", "{label}"):
        with pytest.raises(InputError, match=r"must have \{text\} once and end with \{label\}"):
            InContext("model", example=template)
    with pytest.raises(InputError, match="calibrate"):
        InContext("model", calibrate="some")
    with pytest.raises(InputError, match="shots"):
        InContext("model", shots=-1)
    empty, engine = FewShotData(labelled(8).take([])), SimpleNamespace(__name__="jaxnlp")
    with pytest.raises(InputError, match="pass package=tfnlp or jaxnlp"):
        InContext("model").fit(None, FewShotData(labelled(8)))
    with pytest.raises(InputError, match="no labeled texts to use as examples"):
        InContext("model").fit(engine, empty)
    with pytest.raises(InputError, match="no unlabeled texts"):
        InContext("model", calibrate="unlabelled").fit(engine, FewShotData(labelled(8)))
    words = {name: [name, "x"] for name in LABELS}
    with pytest.raises(InputError, match="need one word per label"):
        InContext("model", verbalizer=words).fit(engine, FewShotData(labelled(8)))
