"""A tiny BERT, its tokenizer, and queries in the layout of CLINC150 that it learns at once: what tests of classifiers share."""

import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from duonlp.architectures import config_from_hf
from duonlp.checkpoints.save import save_checkpoint
from duonlp.parameters import initial_value, parameters

KEYWORDS = {"greet": ("hello", "hi"), "music": ("play", "song"), "weather": ("rain", "sun"), "oos": ("blorp", "zorg")}
FILLERS = ("please", "now", "the", "a", "some", "today")
WORDS = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", *(word for words in KEYWORDS.values() for word in words), *FILLERS)
LABELS = tuple(sorted(KEYWORDS))
BERT = {
    "model_type": "bert", "vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 16, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.2,  # BERT's 0.02 suits a width of 768: so narrow a model would not move
}  # fmt: skip


def tokenizer(words=WORDS):
    """A word each, between [CLS] and [SEP]."""
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = [(word, list(words).index(word)) for word in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]",
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def checkpoint(folder: Path, *, labels=None, words=WORDS, head: str | None = None, **sizes) -> Path:
    """A model with random values in Hugging Face layout, of the base head, or fine-tuned for labels as far as its files say."""
    hf = {**BERT, "vocab_size": len(words), **sizes}
    head = head or ("base" if labels is None else "sequence-classification")
    if labels is not None:
        names = {str(number): label for number, label in enumerate(labels)}
        hf |= {"id2label": names, "label2id": {label: int(number) for number, label in names.items()}}
    config = config_from_hf(hf)
    spec = parameters(config, head)
    save_checkpoint(
        folder, config, head, lambda path: initial_value(path, spec[path], 0), np.dtype("float32"), tokenizer(words)
    )
    return folder


def queries(count: int, seed: int = 0) -> list[list[str]]:
    """[text, label] each, the labels in turn."""
    rng, made = np.random.default_rng(seed), []
    for number in range(count):
        label = list(KEYWORDS)[number % len(KEYWORDS)]
        words = [rng.choice(KEYWORDS[label]), *rng.choice(FILLERS, rng.integers(1, 4))]
        made.append([" ".join(rng.permutation(words)), label])
    return made


def write_queries(file: Path, train: int = 64, validation: int = 24) -> Path:
    """A file as CLINC150's, with out-of-scope queries in splits of their own."""
    splits = {}
    for name, count, seed in (("train", train, 0), ("val", validation, 1)):
        found = queries(count, seed)
        splits[name] = [each for each in found if each[1] != "oos"]
        splits[f"oos_{name}"] = [each for each in found if each[1] == "oos"]
    file.write_text(json.dumps(splits), encoding="utf-8")
    return file
