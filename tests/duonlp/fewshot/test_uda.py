"""Batches for the consistency of unlabeled texts and their copies, its schedules, and errors of UDA."""

import math
from dataclasses import replace

import numpy as np
import pytest

from duonlp.data.labelled.texts import LabelledTexts
from duonlp.errors import InputError
from duonlp.fewshot import FewShotData
from duonlp.fewshot.model_classifier import choose
from duonlp.fewshot.uda import UDA, ConsistencyBatches
from duonlp.training.objectives import ConsistencyLoss
from duonlp.training.objectives.consistency import tsa_threshold
from tests.reference.record_pipelines import load_tokenizer

LABELLED = LabelledTexts(["the loom", "an engine", "leaves"], np.array([0, 1, 1], np.int32), ("a", "b"))
ORIGINALS = [f"the {word} wrote" for word in ("loom", "engine", "program", "leaves", "patterns")]
COPIES = [[f"{number} {text}" for number in ("one", "two")] for text in ORIGINALS]


def batches(steps=4, originals=ORIGINALS, copies=COPIES, ratio=2, **options):
    options = {"max_length": 16, "tsa": "linear", "seed": 3} | options
    return ConsistencyBatches(LABELLED, originals, copies, load_tokenizer("wordpiece"), 2, ratio, steps, **options)


def texts_of(ids):
    """Return the words of token ids [..., T]."""
    tokenizer = load_tokenizer("wordpiece")
    return [tokenizer.decode(row, skip_special_tokens=True) for row in ids.reshape(-1, ids.shape[-1])]


def test_batches_hold_texts_and_their_copies_in_turn():
    several = list(batches(10).epoch(0))
    assert {name: value.shape for name, value in several[0].items() if name.endswith("input_ids")} == {
        "input_ids": (2, 8), "original_input_ids": (2, 2, 8), "augmented_input_ids": (2, 2, 8),
    }  # fmt: skip
    tokens = load_tokenizer("wordpiece")
    read = {tokens.decode(tokens(text)["input_ids"], skip_special_tokens=True): i for i, text in enumerate(ORIGINALS)}
    originals = [read[text] for batch in several for text in texts_of(batch["original_input_ids"])]
    for start in range(0, 40, 5):  # each pass has all of them
        assert sorted(originals[start : start + 5]) == [0, 1, 2, 3, 4]
    assert originals[:5] != originals[5:10]
    copies = [text for batch in several for text in texts_of(batch["augmented_input_ids"])]
    expected = [COPIES[i][place // 5 % 2] for place, i in enumerate(originals)]
    assert copies == [tokens.decode(tokens(text)["input_ids"], skip_special_tokens=True) for text in expected]
    labels = np.concatenate([batch["labels"] for batch in several])
    assert all(sorted(labels[start : start + 3]) == [0, 1, 1] for start in range(0, 18, 3))
    thresholds = [batch["tsa_threshold"][0] for batch in several]
    np.testing.assert_allclose(thresholds, 0.5 + 0.5 * np.arange(10) / 10, rtol=1e-6)


def test_a_batch_depends_on_seed_and_step_alone():
    whole, rest = list(batches().epoch(0)), list(batches().epoch(0, 2))
    for expected, batch in zip(whole[2:], rest, strict=True):
        assert all(np.array_equal(batch[name], value) for name, value in expected.items())
    other = next(iter(batches(seed=4).epoch(0)))
    assert not np.array_equal(other["original_input_ids"], whole[0]["original_input_ids"])


@pytest.mark.parametrize("schedule", ["linear", "log", "exp"])
def test_the_schedules_are_those_of_the_paper(schedule):
    for progress in (0.0, 0.3, 1.0):
        shares = {"linear": progress, "log": 1 - math.exp(-5 * progress), "exp": math.exp(5 * (progress - 1))}
        assert tsa_threshold(schedule, progress, 4) == pytest.approx(shares[schedule] * 0.75 + 0.25)
    assert tsa_threshold(None, 0.1, 4) == 1


def test_the_pool_is_chosen_by_seed():
    texts = [str(number) for number in range(50)]
    chosen = choose(texts, 10, 1)
    assert len({*chosen}) == 10 and chosen == sorted(chosen, key=int) == choose(texts, 10, 1) != choose(texts, 10, 2)
    assert choose(texts, None, 1) == choose(texts, 50, 1) == texts


def test_usage_errors():
    data = FewShotData(LABELLED, None, ORIGINALS)
    for message, call in {
        "there are 0 unlabeled texts": lambda: UDA().fit(None, replace(data, unlabelled=[])),
        "there are 5 unlabeled texts, but this method needs at least 9": lambda: UDA(ratio=9).fit(None, data),
        "the unlabeled texts are not all str": lambda: UDA(ratio=1).fit(None, replace(data, unlabelled=[("a", "b")])),
        "uda trains a model; pass package": lambda: UDA().fit(None, data),
        "temperature is 0; it must be a number above 0": lambda: UDA(temperature=0),
        "confidence is 1; it must be a probability": lambda: UDA(confidence=1),
        "weight is -1; it must be": lambda: ConsistencyLoss(weight=-1),
        "tsa is 'cubic'; it must be one of linear": lambda: UDA(tsa="cubic"),
        "steps is 0 ": lambda: UDA(steps=0),
        "learning_rate is 0; it must be": lambda: UDA(learning_rate=0),
        "ratio is 0 ": lambda: batches(ratio=0),
        "from 1 to 2 each; give equally many": lambda: batches(copies=[*COPIES[:4], ["one"]]),
    }.items():
        with pytest.raises(InputError, match=message):
            call()
