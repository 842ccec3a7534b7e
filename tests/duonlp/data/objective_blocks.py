"""A word-level tokenizer with every special token and blocks of its ids, for the tests of encoder-decoder objectives."""

import numpy as np
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

SENTINELS = [f"<extra_id_{i}>" for i in range(12)]
SPECIAL = ["<pad>", "</s>", "<unk>", "<s>", "<mask>", "<mask_1>", *reversed(SENTINELS)]
PAD, EOS, _, BOS, MASK, MASK_1 = range(6)
FIRST = len(SPECIAL)
STOP, QUESTION = FIRST, FIRST + 1
WORDS = [".", "?", *(f"w{i}" for i in range(60))]
SIZE = len(SPECIAL) + len(WORDS)


def tokenizer(without=(), special=tuple(SPECIAL)):
    """Return a tokenizer with these special tokens, leaving the roles in `without` unset."""
    roles = {
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "mask_token": "<mask>",
    }
    model = models.WordLevel({token: i for i, token in enumerate([*special, *WORDS])}, unk_token="<unk>")
    extra = [token for token in special if token not in roles.values()]
    roles = {role: token for role, token in roles.items() if role not in without}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), extra_special_tokens=extra, **roles)


def blocks(rows: int, length: int, seed: int = 0, specials: float = 0.0, stops: float = 0.0) -> np.ndarray:
    """Return random words, int32 [rows, length], some replaced by document ends (`specials`) and full stops (`stops`)."""
    draws = np.random.default_rng(seed)
    ids = draws.integers(FIRST + 2, SIZE, (rows, length)).astype(np.int32)
    ids[draws.random(ids.shape) < stops] = STOP
    ids[draws.random(ids.shape) < specials] = EOS
    return ids
