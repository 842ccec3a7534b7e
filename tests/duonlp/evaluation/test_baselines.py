"""The baselines: first sentences, and "TL;DR:" with a stand-in for a language model."""

import numpy as np
import pytest

from duonlp.architectures import config_from_hf
from duonlp.errors import InputError
from duonlp.evaluation.baselines import TLDR, lead, tldr
from duonlp.pipelines.pipeline import make_pipeline
from duonlp.tokenizers.train import train_tokenizer

ARTICLE = "The U.S. Senate voted on Monday. Dr. Lee said no. It was late. Nobody slept. Then it rained."
DIALOGUE = "Ann: Are you coming? I wait.\r\nBob: No.\r\nAnn: Why?"


def test_lead_of_an_article():
    assert lead(ARTICLE) == "The U.S. Senate voted on Monday. Dr. Lee said no. It was late."
    assert lead(ARTICLE, 1) == "The U.S. Senate voted on Monday."
    assert lead(ARTICLE.replace(". ", ".\n\n"), 9).count(" ") == ARTICLE.count(" "), "a short text is returned whole"
    assert lead("no full stop") == "no full stop"


def test_lead_of_a_dialogue_keeps_turns_apart():
    assert lead(DIALOGUE) == "Ann: Are you coming? I wait.\nBob: No."
    assert lead(DIALOGUE, 1) == "Ann: Are you coming?"


@pytest.mark.parametrize("text, sentences, message", [(" \n", 3, "empty"), ("A.", 0, "sentences is 0"), (5, 3, "int")])
def test_lead_invalid_arguments(text, sentences, message):
    with pytest.raises(InputError, match=message):
        lead(text, sentences)


class FixedAnswer:
    """A model that answers every prompt with the same text, and records the prompts."""

    def __init__(self, answer: str, positions: int = 64):
        self.tokenizer = train_tokenizer([ARTICLE, TLDR, answer] * 3, vocab_size=400, max_length=positions)
        self.answer = self.tokenizer(answer)["input_ids"] + [self.tokenizer.eos_token_id]
        sizes = {"vocab_size": len(self.tokenizer), "n_positions": positions, "n_embd": 4, "n_layer": 1, "n_head": 1}
        end = {"bos_token_id": self.tokenizer.eos_token_id, "eos_token_id": self.tokenizer.eos_token_id}
        config = config_from_hf({"model_type": "gpt2"} | sizes | end)
        self.prompts, self.calls = [], []
        self.pipe = make_pipeline("text-generation", self.generate, self.tokenizer, config)

    def generate(self, input_ids, attention_mask, *, max_new_tokens, **more):
        self.calls.append(more | {"max_new_tokens": max_new_tokens, "length": input_ids.shape[1]})
        self.prompts += [self.tokenizer.decode(row[mask > 0]) for row, mask in zip(input_ids, attention_mask)]
        new = np.tile(np.array(self.answer[:max_new_tokens], np.int32), (len(input_ids), 1))
        return np.concatenate([input_ids, new], 1)


def test_tldr_follows_the_evaluation_of_gpt2():
    model = FixedAnswer(" Dr. Lee lost. He slept. It rained. It snowed.", positions=256)
    assert tldr(model.pipe, [ARTICLE, "Short \n"]) == ["Dr. Lee lost. He slept. It rained."] * 2
    assert sorted(model.prompts, key=len) == ["Short\nTL;DR:", ARTICLE + "\nTL;DR:"]
    config = model.calls[0]["generation_config"]
    assert (config.do_sample, config.top_k, config.seed) == (True, 2, 0) and model.calls[0]["max_new_tokens"] == 100
    assert tldr(model.pipe, [ARTICLE], 5, sentences=1, do_sample=False, num_beams=2, prompt=" In short:")
    config = model.calls[-1]["generation_config"]
    assert not config.do_sample and config.num_beams == 2 and model.prompts[-1].endswith(" In short:")
    assert tldr(FixedAnswer("").pipe, ["Short"], 5) == [""], "the model stops immediately"
    assert tldr(model.pipe, []) == []


@pytest.mark.parametrize("new", [5, 20, 50])
def test_tldr_truncates_long_documents(new):
    model = FixedAnswer(" No.", positions=64)
    long = " ".join([ARTICLE, "caféé 🙂"] * 5)
    tldr(model.pipe, [long], new)
    document = model.prompts[0].removesuffix(TLDR)
    assert long.startswith(document) and model.prompts[0] != document
    assert 64 - new - 3 <= model.calls[0]["length"] <= 64 - new, "almost all positions are used"


def test_tldr_invalid_arguments():
    model = FixedAnswer(" No.")
    for arguments, options, message in [
        (([""],), {}, r"text 0 is empty"),
        (([ARTICLE, 5], 5), {}, r"text 1 is a int"),
        ((ARTICLE,), {}, r"texts is a str; give a list"),
        (([ARTICLE], 0), {}, r"max_new_tokens is 0"),
        (
            ([ARTICLE], 60),
            {},
            r"text 0 does not fit: of the model's 64 positions, 60 new tokens and the prompt leave none",
        ),
        (([ARTICLE],), {"num_return_sequences": 2}, r"tldr does not support num_return_sequences"),
        (([ARTICLE], 5), {"topk": 2}, r"topk"),
    ]:
        with pytest.raises(InputError, match=message):
            tldr(model.pipe, *arguments, **options)
    with pytest.raises(InputError, match="give a text-generation pipeline"):
        tldr(None, [ARTICLE])
