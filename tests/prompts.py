"""A tiny masked language model whose vocabulary has words for the labels, shared by tests of prompts."""

from pathlib import Path

import numpy as np

from duonlp.architectures import config_from_hf
from duonlp.checkpoints.save import save_checkpoint
from duonlp.data.labelled.texts import LabelledTexts
from duonlp.parameters import initial_value, parameters
from tests.intents import BERT, LABELS, WORDS, queries, tokenizer

VOCABULARY = (*WORDS, "[MASK]", "this", "is", "about", ".", *LABELS)
PATTERN = "{text} this is about {mask} ."
LENGTH = 16
VERBALIZER = {"greet": ["greet", "hello hi"], "music": "music", "oos": "zorg", "weather": "rain weather"}
"""Labels with two words, and words with two tokens."""


def mask_tokenizer():
    """Return the tokenizer of the vocabulary, with a mask token."""
    own = tokenizer(VOCABULARY)
    own.add_special_tokens({"mask_token": "[MASK]"})
    return own


def masked_checkpoint(folder: Path, head: str = "masked-lm", **options) -> Path:
    """Write a model with random weights in Hugging Face layout."""
    config = config_from_hf({**BERT, "num_hidden_layers": 1, "vocab_size": len(VOCABULARY), **options})
    spec = parameters(config, head)
    save_checkpoint(
        folder, config, head, lambda path: initial_value(path, spec[path], 0), np.dtype("float32"), mask_tokenizer()
    )
    return folder


def labelled(count: int = 10, multi_label: bool = False) -> LabelledTexts:
    """Return texts with one label; or with one, two or none."""
    rows = queries(count)
    labels = np.array([LABELS.index(label) for _, label in rows], np.int32)
    if multi_label:
        flags = np.eye(len(LABELS), dtype=np.float32)[labels]
        flags[1::4, 0] = 1
        flags[2::4] = 0
        labels = flags
    return LabelledTexts([text for text, _ in rows], labels, LABELS)
