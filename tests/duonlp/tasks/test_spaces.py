"""Tokens that are only spaces are no answers: byte-level tokenizers give them empty offsets, or those of the spaces."""

import numpy as np
import pytest

from duonlp.architectures import config_from_hf
from duonlp.pipelines import make_pipeline
from tests.reference import record_pipelines as reference

SIZES = {
    "model_type": "bert", "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8,
    "max_position_embeddings": 128,
}  # fmt: skip
CONTEXT = "  leading and   trailing   spaces  \n x"


@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize("name", ["bpe", "gpt2", "unigram"])
def test_answers_are_not_spaces(name: str, align: bool):
    tokenizer = reference.load_tokenizer(name)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    blank = [i for token, i in tokenizer.get_vocab().items() if not token.strip("Ġ▁Ċ")]

    def forward(batch):
        """Prefer tokens that are only spaces."""
        logits = np.where(np.isin(batch["input_ids"], blank), 9.0, 0.1 * np.arange(batch["input_ids"].shape[1]))
        return {"start_logits": logits.astype(np.float32), "end_logits": logits.astype(np.float32)}

    pipe = make_pipeline(
        "question-answering",
        forward,
        tokenizer,
        config_from_hf(SIZES | {"vocab_size": len(tokenizer)}),
        align_to_words=align,
    )
    for options in ({}, {"max_answer_len": 1}, {"max_seq_len": 16, "doc_stride": 2}):
        for top_k in (1, 60):
            answers = pipe(question="q", context=CONTEXT, top_k=top_k, **options)
            for answer in [answers] if top_k == 1 else answers:
                assert answer["answer"].strip() and answer["answer"] == CONTEXT[answer["start"] : answer["end"]]
    impossible = pipe(question="q", context=CONTEXT, top_k=999, handle_impossible_answer=True)
    assert sum(answer["answer"] == "" for answer in impossible) == 1
