"""Ranking by a sequence classifier."""

import numpy as np
import pytest

from duonlp.architectures import config_from_hf
from duonlp.errors import InputError
from duonlp.pipelines.pipeline import make_pipeline
from duonlp.retrieval import CrossEncoderRanker, Document
from tests.reference import record_pipelines as reference

DOCUMENTS = [
    Document(text, {"title": "The loom"}) for text in ("a", "The first program", "Ada Lovelace wrote the loom")
]


def make(num_labels, seen=None):
    tokenizer = reference.load_tokenizer("wordpiece")
    hf = {"model_type": "bert", "vocab_size": len(tokenizer), "hidden_size": 16, "num_attention_heads": 2}
    config = config_from_hf(hf | {"num_labels": num_labels})

    def forward(batch):  # the logits depend on the number of tokens of the second text
        count = (batch["token_type_ids"] * batch["attention_mask"]).sum(1).astype(np.float32)
        return {"logits": np.stack([count, 2 * count, -count], axis=1)[:, :num_labels]}

    return make_pipeline("text-classification", forward, tokenizer, config)


def test_one_logit_is_the_score():
    ranked = CrossEncoderRanker(make(1)).rank("Who?", DOCUMENTS, top_k=2)
    assert [document.id for document in ranked] == [DOCUMENTS[2].id, DOCUMENTS[1].id]
    assert ranked[0].score == 6.0 and DOCUMENTS[2].score is None  # 5 tokens and [SEP]


def test_the_score_of_one_of_several_classes_is_its_log_odds():
    (document,) = CrossEncoderRanker(make(2)).rank("Who?", DOCUMENTS[:1])
    assert document.score == 2.0
    (document,) = CrossEncoderRanker(make(3), label="LABEL_0").rank("Who?", DOCUMENTS[:1])
    assert np.isclose(document.score, 2 - np.log(np.exp(4) + np.exp(-2)))
    with pytest.raises(InputError, match="the model has 3 classes; pass label="):
        CrossEncoderRanker(make(3))
    with pytest.raises(InputError, match="label is 'yes'; the model's classes are 'LABEL_0'"):
        CrossEncoderRanker(make(1), label="yes")


def test_all_queries_are_ranked_at_once():
    ranker = CrossEncoderRanker(make(1), title="title")
    ranked = ranker.rank_all(["Who?", "What?", "Why?"], [DOCUMENTS, [], DOCUMENTS[:1]])
    assert [len(found) for found in ranked] == [3, 0, 1] and ranked[2][0].score == 4.0  # with the title
    assert ranker.rank_all([], []) == []
    with pytest.raises(InputError, match="1 lists of documents for 2 queries"):
        ranker.rank_all(["a", "b"], [DOCUMENTS])
    with pytest.raises(InputError, match="top_k is 0"):
        ranker.rank("a", DOCUMENTS, 0)
    with pytest.raises(InputError, match=r"CrossEncoderRanker got None; pass a pipeline"):
        CrossEncoderRanker(None)
