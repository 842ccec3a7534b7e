"""A tiny BERT and questions that it learns to answer fast, shared by tests of readers."""

from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from duonlp.architectures import config_from_hf
from duonlp.checkpoints.save import save_checkpoint
from duonlp.parameters import initial_value, parameters
from tests.intents import BERT

PLACES = ("attic", "garden", "kitchen", "tower")
FILLERS = ("quietly", "today", "again", "still", "there", "maybe")
WORDS = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", *PLACES, *FILLERS, "where", "is", "it")


def reader_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per word, and BERT's special tokens and token types."""
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def reader_checkpoint(folder: Path, head: str = "base") -> Path:
    """Write a BERT of three layers with random weights and 32 positions, in Hugging Face layout."""
    config = config_from_hf({**BERT, "vocab_size": len(WORDS), "max_position_embeddings": 32})
    spec = parameters(config, head)
    save_checkpoint(
        folder, config, head, lambda path: initial_value(path, spec[path], 0), np.dtype("float32"), reader_tokenizer()
    )
    return folder


def questions(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return rows of questions whose answer is the only place in a context of six words; every fourth context has none."""
    rng, rows = np.random.default_rng(seed), []
    for number in range(count):
        words = list(rng.choice(FILLERS, 6))
        place = None if number % 4 == 3 else str(rng.choice(PLACES))
        if place is not None:
            words[rng.integers(6)] = place
        context = " ".join(words)
        answers = {"text": [], "answer_start": []} if place is None else {
            "text": [place], "answer_start": [context.index(place)]
        }  # fmt: skip
        rows.append(
            {
                "id": f"{seed}-{number}", "title": f"item {number % 7}", "question": "where is it", "context": context,
                "answers": answers,
            }
        )  # fmt: skip
    return rows
