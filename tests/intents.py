"""A tiny BERT, its tokenizer, and queries in the format of CLINC150 that it learns fast, shared by classifier tests."""

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
    "initializer_range": 0.2,  # BERT's 0.02 is meant for a width of 768: a model this narrow would hardly train
}  # fmt: skip


def tokenizer(words=WORDS):
    """Return a tokenizer with one token per word, between [CLS] and [SEP]."""
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = [(word, list(words).index(word)) for word in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]",
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def checkpoint(folder: Path, *, labels=None, words=WORDS, head: str | None = None, **sizes) -> Path:
    """Write a model with random weights in Hugging Face layout: a base model, or with labels a sequence classifier."""
    hf = {**BERT, "vocab_size": len(words), **sizes}
    head = head or ("base" if labels is None else "sequence-classification")
    if labels is not None:
        names = {str(i): label for i, label in enumerate(labels)}
        hf |= {"id2label": names, "label2id": {label: int(i) for i, label in names.items()}}
    config = config_from_hf(hf)
    spec = parameters(config, head)
    save_checkpoint(
        folder, config, head, lambda path: initial_value(path, spec[path], 0), np.dtype("float32"), tokenizer(words)
    )
    return folder


def queries(count: int, seed: int = 0) -> list[list[str]]:
    """Return rows [text, label], cycling through the labels."""
    rng, rows = np.random.default_rng(seed), []
    for i in range(count):
        label = list(KEYWORDS)[i % len(KEYWORDS)]
        words = [rng.choice(KEYWORDS[label]), *rng.choice(FILLERS, rng.integers(1, 4))]
        rows.append([" ".join(rng.permutation(words)), label])
    return rows


def write_queries(file: Path, train: int = 64, validation: int = 24) -> Path:
    """Write a file in the format of CLINC150, which has separate splits for out-of-scope queries."""
    splits = {}
    for name, count, seed in (("train", train, 0), ("val", validation, 1)):
        rows = queries(count, seed)
        splits[name] = [row for row in rows if row[1] != "oos"]
        splits[f"oos_{name}"] = [row for row in rows if row[1] == "oos"]
    file.write_text(json.dumps(splits), encoding="utf-8")
    return file
