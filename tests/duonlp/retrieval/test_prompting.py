"""Prompts of numbered passages: what fits into the context window, and which passages an answer cites."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from duonlp import architectures
from duonlp.errors import InputError
from duonlp.pipelines import make_pipeline
from duonlp.retrieval import Document, PromptGenerator, parse_citations
from tests.cases import SIZES

ANSWER = ["<pad>", "</s>", "<unk>", "loud", "[1]", "and", "[7]", "[2,9]"]
TEMPLATE = "{passages} Question: {question}"
CONFIGS = {
    "text-generation": SIZES["gpt2"] | {"model_type": "gpt2", "n_positions": 40},
    "text2text-generation": SIZES["bart"] | {"model_type": "bart", "max_position_embeddings": 32},
}


def pipeline(task, answer=(3, 4, 5, 6, 7, 1), **changes):
    """Return a pipeline with one token per word whose model always writes the same answer; it keeps what it reads."""
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(ANSWER)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", **changes
    )
    config = architectures.config_from_hf(CONFIGS[task] | {"vocab_size": 200, "eos_token_id": 1, "pad_token_id": 0})
    lengths = []

    def forward(input_ids, attention_mask, **arguments):
        lengths.append((attention_mask.sum(1).tolist(), arguments["max_new_tokens"]))
        prompt = input_ids if task == "text-generation" else np.zeros((len(input_ids), 1), np.int32)
        return np.concatenate([prompt, np.tile(answer, (len(input_ids), 1))], 1)

    return make_pipeline(task, forward, tokenizer, config), lengths


def documents(*lengths):
    return [Document(" ".join([f"d{i}"] * n), {"title": f"title{i}"}, f"id{i}") for i, n in enumerate(lengths)]


@pytest.mark.parametrize("task", CONFIGS)
def test_answers_cite_the_passages_in_the_prompt(task):
    pipe, _ = pipeline(task)
    result = PromptGenerator(pipe, template=TEMPLATE, passage="[{number}] {title}: {text}", max_new_tokens=8).generate(
        "is it {loud}?", documents(3, 4)
    )
    assert result.prompt == "[1] title0: d0 d0 d0\n[2] title1: d1 d1 d1 d1 Question: is it {loud}?"
    assert result.answer == "loud [1] and [7] [2,9]" and result.shortened is None and result.dropped == ()
    assert result.citations == (1, 2) and result.unknown_citations == (7, 9) and result.document_ids == ["id0", "id1"]


@pytest.mark.parametrize("task", CONFIGS)
def test_documents_are_shortened_and_dropped_to_fit(task):
    pipe, lengths = pipeline(task)
    generator = PromptGenerator(
        pipe, template=TEMPLATE, max_new_tokens=8
    )  # room for 32 tokens, 2 of them the question's
    result = generator.generate("why?", documents(9, 9, 15, 9))  # of a document, one token is its number
    assert lengths == [([32], 8)] and result.shortened == "id2" and result.dropped == ("id3",)
    assert result.prompt.endswith("[3] d2 d2 d2 d2 d2 d2 d2 d2 ... Question: why?")
    assert [document.content for document in result.documents] == [d.content for d in documents(9, 9, 15)]
    result = generator.generate("why?", documents(9, 13, 9))  # 6 tokens are left, too few for MIN_WORDS words
    assert len(result.documents) == 2 and result.shortened is None and result.dropped == ("id2",)
    result = generator.generate("why?", documents(100_000))
    assert result.shortened == "id0" and lengths[-1] == ([32], 8)
    with pytest.raises(InputError, match=r"41 of the 32 tokens.*shorten the question"):
        generator.generate("why? " * 40, documents(9))


def test_a_chat_template_wraps_the_prompt():
    chat = "{% for m in messages %}<{{ m.role }}> {{ m.content }}{% endfor %} <assistant>"
    pipe, lengths = pipeline("text-generation", chat_template=chat)
    assert PromptGenerator(pipe, max_new_tokens=4, template=TEMPLATE).generate("why?", documents(3)).prompt == (
        "<user> [1] d0 d0 d0 Question: why? <assistant>"
    )
    assert lengths == [([8], 4)]
    assert (
        "<user>"
        not in PromptGenerator(pipe, max_new_tokens=4, template=TEMPLATE, chat=False)
        .fit_prompt("why?", documents(3))
        .text
    )


@pytest.mark.parametrize(
    ("text", "known", "unknown"),
    [
        ("no citation (1) [a] []", (), ()),
        ("as [3] says [ 1,2 ] and [3]", (3, 1, 2), ()),
        ("[0] [2-4] [99999999999]", (2, 3), (0, 4)),
        ("[1-999999999]; [3\u20131]", (1, 2, 3), (999999999,)),
    ],
)
def test_citations(text, known, unknown):
    assert parse_citations(text, 3) == (known, unknown)


def test_bad_input_is_refused():
    pipe, _ = pipeline("text-generation")
    for options, message in (
        ({"template": "{passages}"}, "template lacks {question}"),
        ({"template": TEMPLATE + "{x}"}, "unknown field {x}"),
        ({"template": TEMPLATE + "{"}, "a brace is written twice"),
        ({"passage": "{text}"}, "passage lacks {number}"),
        ({"max_new_tokens": 40}, "positions for 40 tokens"),
        ({"num_return_sequences": 2}, "a prompt gets one answer"),
        ({"chat": True}, "no chat template"),
        ({"num_bems": 2}, "num_bems"),
    ):
        with pytest.raises(InputError, match=message):
            PromptGenerator(pipe, **{"max_new_tokens": 8} | options)
    with pytest.raises(InputError, match="does not generate text"):
        PromptGenerator(lambda text: text)  # type: ignore[arg-type]
    generator = PromptGenerator(pipe, max_new_tokens=8)
    for query, given, message in (
        (" ", documents(1), "the question is an empty text"),
        ("why?", [], "at least one Document"),
        ("why?", ["text"], "expected a duonlp.retrieval.Document"),
    ):
        with pytest.raises(InputError, match=message):
            generator.generate(query, given)
