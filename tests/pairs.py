"""A tiny encoder-decoder, its tokenizer, and pairs it can learn, shared by the tests of fine-tuning."""

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from duonlp import architectures
from duonlp.data.pairs.batches import PairBatches
from duonlp.data.pairs.collator import PairCollator
from duonlp.data.pairs.summaries import Pair

COLORS, ANIMALS = ("red", "blue", "green"), ("fox", "cow", "hen")
WORDS = ("<pad>", "</s>", "<unk>", *COLORS, *ANIMALS, "the", "is", "here", "and", "there", "a", "seen", "was")
T5 = {
    "model_type": "t5", "vocab_size": len(WORDS), "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_decoder_layers": 1,
    "num_heads": 2, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 16, "dropout_rate": 0.0,
    "feed_forward_proj": "relu", "tie_word_embeddings": True, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip


def tokenizer():
    """Return a tokenizer with one token per word."""
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def pairs(count: int = 24, seed: int = 0) -> list[Pair]:
    """Return short documents with one color and one animal, which are the summary."""
    rng, filler, result = np.random.default_rng(seed), WORDS[9:], []
    for i in range(count):
        color, animal = COLORS[rng.integers(3)], ANIMALS[rng.integers(3)]
        words = [*rng.choice(filler, rng.integers(1, 4)), color, animal, *rng.choice(filler, rng.integers(1, 4))]
        result.append(Pair(document=" ".join(words), summaries=(f"{color} {animal}", f"a {animal}"), id=str(i)))
    return result


def pair_batches(count: int = 24, size: int = 8, *, seed: int = 0, hf=None, **options) -> PairBatches:
    """Return batches of :func:`pairs`, all of the same shape."""
    config = architectures.config_from_hf(T5 if hf is None else hf)
    return PairBatches(pairs(count, seed), PairCollator(tokenizer(), config), size, **options)


def share_of_words(predictions, references) -> dict[str, float]:
    """Compute a custom metric: the fraction of the first reference's words predicted at the same position."""
    first = [reference if isinstance(reference, str) else reference[0] for reference in references]
    hits = [
        word == expected
        for text, target in zip(predictions, first)
        for word, expected in zip(text.split() + [""] * 9, target.split())
    ]
    return {"words": float(np.mean(hits))}
