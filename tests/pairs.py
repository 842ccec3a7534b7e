"""A tiny encoder-decoder, its tokenizer, and pairs it can learn: what the tests of fine-tuning share."""

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from duonlp import architectures
from duonlp.data.pairs.batches import PairBatches
from duonlp.data.pairs.collator import PairCollator
from duonlp.data.pairs.summaries import Pair

COLOURS, ANIMALS = ("red", "blue", "green"), ("fox", "cow", "hen")
WORDS = ("<pad>", "</s>", "<unk>", *COLOURS, *ANIMALS, "the", "is", "here", "and", "there", "a", "seen", "was")
T5 = {
    "model_type": "t5", "vocab_size": len(WORDS), "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_decoder_layers": 1,
    "num_heads": 2, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 16, "dropout_rate": 0.0,
    "feed_forward_proj": "relu", "tie_word_embeddings": True, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip


def tokenizer():
    """A word each."""
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def pairs(count: int = 24, seed: int = 0) -> list[Pair]:
    """Documents of few words, whose summary is the one colour and the one animal in them."""
    rng, filler, made = np.random.default_rng(seed), WORDS[9:], []
    for number in range(count):
        colour, animal = COLOURS[rng.integers(3)], ANIMALS[rng.integers(3)]
        words = [*rng.choice(filler, rng.integers(1, 4)), colour, animal, *rng.choice(filler, rng.integers(1, 4))]
        made.append(Pair(document=" ".join(words), summaries=(f"{colour} {animal}", f"a {animal}"), id=str(number)))
    return made


def pair_batches(count: int = 24, size: int = 8, *, seed: int = 0, hf=None, **options) -> PairBatches:
    """Batches of them; one shape."""
    config = architectures.config_from_hf(T5 if hf is None else hf)
    return PairBatches(pairs(count, seed), PairCollator(tokenizer(), config), size, **options)


def share_of_words(predictions, references) -> dict[str, float]:
    """A metric of one's own: the share of the first reference's words that were written in their places."""
    first = [reference if isinstance(reference, str) else reference[0] for reference in references]
    hits = [
        word == wanted
        for text, to in zip(predictions, first)
        for word, wanted in zip(text.split() + [""] * 9, to.split())
    ]
    return {"words": float(np.mean(hits))}
