"""First sentences, and "TL;DR:" over a stand-in for a language model."""

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
    assert lead(ARTICLE.replace(". ", ".\n\n"), 9).count(" ") == ARTICLE.count(" "), "a short text is given back whole"
    assert lead("no full stop") == "no full stop"


def test_lead_of_a_dialogue_keeps_turns_apart():
    assert lead(DIALOGUE) == "Ann: Are you coming? I wait.\nBob: No."
    assert lead(DIALOGUE, 1) == "Ann: Are you coming?"


@pytest.mark.parametrize("text, sentences, what", [(" \n", 3, "empty"), ("A.", 0, "sentences is 0"), (5, 3, "int")])
def test_lead_of_nothing(text, sentences, what):
    with pytest.raises(InputError, match=what):
        lead(text, sentences)


class Speaker:
    """A model that goes on with the same text whatever it is asked, and remembers what that was."""

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


def test_tldr_is_the_first_sentences_of_what_gpt2_is_asked_for():
    model = Speaker(" Dr. Lee lost. He slept. It rained. It snowed.", positions=256)
    assert tldr(model.pipe, [ARTICLE, "Short \n"]) == ["Dr. Lee lost. He slept. It rained."] * 2
    assert sorted(model.prompts, key=len) == ["Short\nTL;DR:", ARTICLE + "\nTL;DR:"]
    config = model.calls[0]["generation_config"]
    assert (config.do_sample, config.top_k, config.seed) == (True, 2, 0) and model.calls[0]["max_new_tokens"] == 100
    assert tldr(model.pipe, [ARTICLE], 5, sentences=1, do_sample=False, num_beams=2, prompt=" In short:")
    config = model.calls[-1]["generation_config"]
    assert not config.do_sample and config.num_beams == 2 and model.prompts[-1].endswith(" In short:")
    assert tldr(Speaker("").pipe, ["Short"], 5) == [""], "a model that ends at once"
    assert tldr(model.pipe, []) == []


@pytest.mark.parametrize("new", [5, 20, 50])
def test_tldr_cuts_the_end_of_a_long_document(new):
    model = Speaker(" No.", positions=64)
    long = " ".join([ARTICLE, "caféé 🙂"] * 5)
    tldr(model.pipe, [long], new)
    document = model.prompts[0].removesuffix(TLDR)
    assert long.startswith(document) and model.prompts[0] != document
    assert 64 - new - 3 <= model.calls[0]["length"] <= 64 - new, "hardly a position is left free"


def test_tldr_of_what_it_cannot_work_on():
    model = Speaker(" No.")
    for arguments, options, what in [
        (([""],), {}, r"text 0 is empty"),
        (([ARTICLE, 5], 5), {}, r"text 1 is a int"),
        ((ARTICLE,), {}, r"texts is a str; give a list"),
        (([ARTICLE], 0), {}, r"max_new_tokens is 0"),
        (([ARTICLE], 60), {}, r"text 0 does not fit: the model has 64 positions, and 60 new tokens"),
        (([ARTICLE],), {"num_return_sequences": 2}, r"num_return_sequences does not go with tldr"),
        (([ARTICLE], 5), {"topk": 2}, r"topk"),
    ]:
        with pytest.raises(InputError, match=what):
            tldr(model.pipe, *arguments, **options)
    with pytest.raises(InputError, match="give a pipeline of text-generation"):
        tldr(None, [ARTICLE])
