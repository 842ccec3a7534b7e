"""Small language models for the tests of text generation: one set of weights, either engine, texts that end early."""

from importlib import import_module

import numpy as np

from tests.cases import SIZES

EOS = 60
HF = SIZES["gpt2"] | {"model_type": "gpt2", "n_positions": 40, "eos_token_id": EOS, "pad_token_id": 0}


def language_model(framework: str, seed: int = 3, **hf):
    """A tiny GPT-2, alike in both frameworks. Its weights are large enough that what it says depends on the prompt."""
    nlp = import_module(f"{framework}nlp")
    return nlp.AutoModelForCausalLM.from_config(HF | hf, seed=seed, initializer_range=0.5)


def prompts(seed: int, lengths, vocabulary: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """Random ids [B, T], padded with 0 on the left, and their mask."""
    rng, longest = np.random.default_rng(seed), max(lengths)
    ids = rng.integers(1, vocabulary, (len(lengths), longest))
    mask = (np.arange(longest) >= longest - np.array(lengths)[:, None]).astype(np.int32)
    return np.where(mask, ids, 0).astype(np.int32), mask
