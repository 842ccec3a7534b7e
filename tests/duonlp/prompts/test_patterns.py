"""Patterns, verbalizers and batches of prompts, with every kind of tokenizer."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from duonlp.errors import InputError
from duonlp.prompts import Pattern, PromptBatches, Verbalizer, as_patterns
from duonlp.prompts.patterns import encode_masked, num_masks
from tests.intents import LABELS, tokenizer
from tests.prompts import LENGTH, PATTERN, VERBALIZER, labelled, mask_tokenizer

FILES = Path(__file__).parents[2] / "reference/pipelines"
TEXT = "The download of the model hangs and then the whole session crashes without a message " * 3


def trained_tokenizer(name: str):
    """Return a WordPiece, byte-level BPE or Unigram tokenizer; the last two with a mask token as RoBERTa's and ALBERT's."""
    from tokenizers import AddedToken

    backend = Tokenizer.from_str(json.dumps(json.loads((FILES / f"{name}.json").read_text())))
    own = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]" if name == "wordpiece" else "<pad>")
    mask = "[MASK]" if name == "wordpiece" else AddedToken("<mask>", lstrip=True, special=True)
    own.add_special_tokens({"mask_token": mask})
    return own


@pytest.mark.parametrize("name", ["wordpiece", "gpt2", "unigram"])
@pytest.mark.parametrize("template", ["{text} This is about {mask}.", "A {mask} issue: {text} (end)"])
def test_the_text_is_truncated_and_not_the_pattern(name, template):
    own, pattern = trained_tokenizer(name), Pattern(template)
    short, long = encode_masked(own, pattern, ["A bug", TEXT], 2, 40)
    assert len(long.ids) in (38, 39, 40) and len(short.ids) < 40
    for prompt in (short, long):
        assert (prompt.ids[prompt.blank] == own.mask_token_id).all() and len(prompt.blank) == 2
        assert own.decode(prompt.ids[prompt.text]).strip() in ("A bug", "a bug") or prompt is long
    again = own(pattern.fill("A bug", own.mask_token * 2)[0])["input_ids"]
    assert short.ids.tolist() == again  # the tokenizer sees the whole sentence
    rest = np.delete(long.ids, long.text)
    assert rest.tolist() == np.delete(short.ids, short.text).tolist()  # the pattern is whole
    (whole,) = encode_masked(own, pattern, [TEXT], 2, 1000)
    kept = len(long.text) - 1  # the token at the cut may differ
    assert long.ids[long.text][:kept].tolist() == whole.ids[whole.text][:kept].tolist() and kept > 20


def test_masks_within_the_text_are_not_those_of_the_pattern():
    own = mask_tokenizer()
    (prompt,) = encode_masked(own, Pattern(PATTERN), ["play [MASK] song"], 1, LENGTH)
    assert prompt.blank.tolist() == [7] and prompt.ids[2] == own.mask_token_id and prompt.text.tolist() == [1, 2, 3]


def test_words_have_the_tokens_of_their_place():
    """A byte-level tokenizer has other tokens for a word behind a space."""
    own = trained_tokenizer("gpt2")
    verbalizer = Verbalizer.of(["the", "model"])
    (the,), (model,) = verbalizer.tokens(own, [Pattern("{text} it is {mask} .")])
    assert list(the) == own(" the")["input_ids"] and list(model) == own(" model")["input_ids"]
    with pytest.raises(InputError, match="differ between the patterns"):
        verbalizer.tokens(own, [Pattern("{text} it is {mask} ."), Pattern("{mask}: {text}")])


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{text} is it", "has {mask} 0 times"),
        ("it is {mask}", "has {text} 0 times"),
        ("{text} {mask} {mask}", "2 times"),
    ],
)
def test_patterns_need_a_text_and_a_mask(template, message):
    with pytest.raises(InputError, match=message):
        Pattern(template)
    with pytest.raises(InputError, match="no pattern"):
        as_patterns([])


def test_bad_verbalizers():
    own, patterns = mask_tokenizer(), as_patterns(PATTERN)
    with pytest.raises(InputError, match="no word for 'oos'"):
        Verbalizer.of(LABELS, {name: name for name in LABELS if name != "oos"})
    with pytest.raises(InputError, match=r"has words for 'musik', .* did you mean 'music'"):
        Verbalizer.of(LABELS, {**VERBALIZER, "musik": "song"})
    with pytest.raises(InputError, match="words of 'oos' are"):
        Verbalizer.of(LABELS, {**VERBALIZER, "oos": []})
    with pytest.raises(InputError, match="at least two"):
        Verbalizer.of(["one"])
    with pytest.raises(InputError, match="'quux' of the label 'oos' has a token that the tokenizer does not know"):
        Verbalizer.of(LABELS, {**VERBALIZER, "oos": "quux"}).tokens(own, patterns)
    with pytest.raises(InputError, match="'music' and 'oos' have the same tokens"):
        Verbalizer.of(LABELS, {**VERBALIZER, "oos": "music"}).tokens(own, patterns)
    with pytest.raises(InputError, match="prompts need a tokenizer with a mask token"):
        encode_masked(tokenizer(), patterns[0], ["play"], 1, LENGTH)
    with pytest.raises(InputError, match=r"max_length is 7, but the pattern .* has 7 tokens without a text"):
        encode_masked(own, patterns[0], ["play the song"], 1, 7)
    with pytest.raises(InputError, match="no labeled texts"):
        PromptBatches(own, patterns, Verbalizer.of(LABELS), [], np.zeros(0, np.int32), 4, max_length=LENGTH)


def prompt_batches(multi_label=False, **options):
    data = labelled(10, multi_label)
    return PromptBatches(
        mask_tokenizer(), as_patterns([PATTERN, "{text} is {mask} ."]), Verbalizer.of(LABELS, VERBALIZER), data.texts,
        data.labels, 4, max_length=LENGTH, **options,
    )  # fmt: skip


def test_batches_are_determined_by_seed_epoch_and_number():
    batches = prompt_batches(text_mode="label", seed=3)
    epochs = [list(batches.epoch(i)) for i in range(2)]
    assert num_masks(batches.verbalizer.tokens(batches.tokenizer, batches.patterns)) == 2
    for batch, again in zip(epochs[1][1:], prompt_batches(text_mode="label", seed=3).epoch(1, 1), strict=True):
        assert all((batch[name] == again[name]).all() for name in batch)
    assert any((a["input_ids"] != b["input_ids"]).any() for a, b in zip(*epochs, strict=True))
    for epoch, batches_of in enumerate(epochs):
        assert len(batches_of) == 3 and batches_of[-1]["row_mask"].tolist() == [1, 1, 0, 0]
        rows = batches.order(epoch)
        assert sorted(rows[rows >= 0]) == list(range(10))
        assert (batches_of[-1]["labels"][2:] == -100).all()


@pytest.mark.parametrize("multi_label", [False, True])
def test_inserted_labels_are_right_as_often_as_wrong(multi_label):
    batches, seen = prompt_batches(multi_label, text_mode="label"), []
    mask, names = batches.tokenizer.mask_token_id, batches.tokenizer.convert_ids_to_tokens
    for epoch in range(20):
        for rows, batch in zip(batches.order(epoch), batches.epoch(epoch), strict=True):
            for i, row in enumerate(rows[rows >= 0]):
                ids, labels = batch["text_input_ids"][i], batch["text_labels"][i]
                masked = batch["text_logit_positions"][i][labels >= 0]
                assert (ids[masked] == mask).all() and (ids == mask).sum() == len(masked) >= 1
                restored = ids.copy()
                restored[masked] = labels[labels >= 0]
                text = " ".join(names(restored[batch["text_attention_mask"][i] > 0])[1:-1])
                assert text.startswith(batches.texts[row])
                has = [word for label, words in enumerate(batches.verbalizer.words) for word in words
                       if (batches.labels[row, label] if multi_label else batches.labels[row] == label)]  # fmt: skip
                end = text.removeprefix(batches.texts[row]).removesuffix(" .").strip()
                end = end.removeprefix("this is about ").removeprefix("is ")
                assert (end in has) == bool(batch["text_target"][i])
                seen.append(batch["text_target"][i])
    assert (0.3 if multi_label else 0.4) < np.mean(seen) < 0.6


def test_auxiliary_texts_keep_the_masks_of_the_pattern():
    batch = prompt_batches(text_mode="mask", other_texts=["hello the song"]).batch(0, 0)
    mask = mask_tokenizer().mask_token_id
    assert ((batch["text_input_ids"] == mask).sum(1) == 3).all()  # two of the pattern, one of three text tokens
    assert ((batch["text_labels"] >= 0).sum(1) == 1).all() and "text_target" not in batch
