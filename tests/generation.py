"""Small language models, the same in both engines, and inputs of logits processors, for tests of generation."""

from importlib import import_module

import numpy as np

from duonlp.checkpoints import open_checkpoint
from duonlp.config import LayerPattern
from tests.cases import SIZES

EOS = 60
HF = SIZES["gpt2"] | {"model_type": "gpt2", "n_positions": 40, "eos_token_id": EOS, "pad_token_id": 0}
LLAMA = SIZES["llama"] | {
    "model_type": "llama", "num_hidden_layers": 3, "max_position_embeddings": 40, "eos_token_id": EOS, "pad_token_id": 0,
    "rope_parameters": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 20.0,
        "original_max_position_embeddings": 20,
    },
}  # fmt: skip


def language_model(framework: str, seed: int = 3, hf: dict = HF, **changes):
    """Return a tiny GPT-2 (or the model of ``hf``), the same in both frameworks, whose text depends on the prompt."""
    nlp = import_module(f"{framework}nlp")
    return nlp.AutoModelForCausalLM.from_config(hf | changes, seed=seed, initializer_range=0.5)


def windowed_config(config, windows):
    """Return a configuration with an attention window, or None, for each layer."""
    return config.replace(layers=LayerPattern.of([config.replace(attention__window=w).layers[0] for w in windows]))


def windowed_model(framework: str, folder, windows):
    """Load a causal language model and give its layers attention windows."""
    checkpoint = open_checkpoint(folder)
    config = windowed_config(checkpoint.transformer_config(), windows)
    plan = checkpoint.plan(config, "causal-lm", 0, False)
    return import_module(f"{framework}nlp").AutoModelForCausalLM._from_plan(config, plan, "float32", "float32")


SOURCE, TARGET_EOS = 12, 33
# Untied: an untrained tied model repeats its last token.
T5 = SIZES["t5"] | {
    "model_type": "t5", "num_layers": 1, "num_decoder_layers": 2, "tie_word_embeddings": False,
    "eos_token_id": TARGET_EOS, "pad_token_id": 0,
}  # fmt: skip


def encoder_decoder(framework: str, seed: int = 3, hf: dict | None = None, **changes):
    """Return a tiny T5 (or the model of ``hf``), the same in both frameworks, whose text depends on the source."""
    nlp = import_module(f"{framework}nlp")
    return nlp.AutoModelForSeq2SeqLM.from_config((hf or T5) | changes, seed=seed)


def sources(seed: int, lengths, vocabulary: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """Return random ids [B, T], padded with 0 on the right, and their mask."""
    ids, mask = prompts(seed, lengths, vocabulary)
    return ids[:, ::-1].copy(), mask[:, ::-1].copy()


def prompts(seed: int, lengths, vocabulary: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """Return random ids [B, T], padded with 0 on the left, and their mask."""
    rng, longest = np.random.default_rng(seed), max(lengths)
    ids = rng.integers(1, vocabulary, (len(lengths), longest))
    mask = (np.arange(longest) >= longest - np.array(lengths)[:, None]).astype(np.int32)
    return np.where(mask, ids, 0).astype(np.int32), mask


COLUMNS, STEP = 9, 6
"""Width of the ids passed to processors, and the column whose token comes next."""


def processor_inputs(seed: int, padded: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Return ids [4, COLUMNS] of few distinct tokens, so that n-grams repeat, and logits [4, 23] with ties and -inf."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 4, (4, COLUMNS)).astype(np.int32)
    if padded:
        ids[1, :2] = -1
    ids[:, STEP:] = -1
    logits = (2 * rng.standard_normal((4, 23))).astype(np.float32)
    logits[1] = np.round(logits[1] * 2) / 2 + 0.0  # no -0.0, which some sorts put before 0.0
    logits[2, rng.permutation(23)[:9]] = -np.inf
    logits[3, 5:9] = logits[3].max()
    return ids, logits


def tokens(*ids) -> np.ndarray:
    """Return int32 ids, padded with -1 to a multiple of 4."""
    return np.array(ids + (-1,) * (-len(ids) % 4), np.int32)


SOURCES = np.array([[0, 2, 1, 2, 3, 3], [3, 1, 0, 0, 2, 5]], np.int32)
"""Sources for encoder processors: two rows, each of which belongs to two texts."""

PROCESSORS = [
    ("temperature", {"temperature": np.float32(0.7)}),
    ("repetition_penalty", {"penalty": np.float32(1.7)}),
    ("no_repeat_ngram", {"size": 1}),
    ("no_repeat_ngram", {"size": 2}),
    ("no_repeat_ngram", {"size": 3}),
    *(("encoder_no_repeat_ngram", {"size": size, "source_ids": SOURCES}) for size in (1, 2, 3, 7)),
    *(("encoder_repetition_penalty", {"penalty": np.float32(p), "source_ids": SOURCES}) for p in (0.7, 1.7)),
    ("sequence_bias", {
        "prefixes": np.array([[-2, -2], [-2, 2], [1, 3], [-2, 1]], np.int32), "last": tokens(4, 5, 5, 7),
        "bias": np.array([1.5, -2.0, 0.5, -np.inf], np.float32),
    }),
    ("no_end_before", {"eos_ids": tokens(3, 20), "column": np.int32(STEP)}),
    ("no_end_before", {"eos_ids": tokens(3, 20), "column": np.int32(STEP + 1)}),
    ("forced_tokens", {"tokens": tokens(3, 20), "column": np.int32(STEP)}),
    ("forced_tokens", {"tokens": tokens(3), "column": np.int32(STEP + 1)}),
    ("remove_invalid_values", {}),
    ("exponential_decay_length_penalty", {
        "eos_ids": tokens(3, 20), "start": np.int32(STEP - 2), "growth": (1.5 ** np.arange(9) - 1).astype(np.float32),
    }),
    ("suppress_tokens", {"tokens": tokens(0, 7, 22)}),
    ("suppress_tokens_at", {"tokens": tokens(0, 7), "column": np.int32(STEP)}),
    ("suppress_tokens_at", {"tokens": tokens(0, 7), "column": np.int32(STEP - 1)}),
    *(("top_h", {"h": np.float32(h)}) for h in (0.2, 0.8)),
    *(("top_k", {"k": k, "min_tokens_to_keep": keep}) for k, keep in ((1, 1), (5, 1), (2, 3), (50, 1))),
    *(("top_p", {"p": np.float32(p), "min_tokens_to_keep": keep}) for p, keep in ((0.3, 1), (0.85, 1), (0.1, 3))),
    *(("min_p", {"p": np.float32(p), "min_tokens_to_keep": keep}) for p, keep in ((0.05, 1), (0.4, 1), (0.9, 3))),
    *(("typical_p", {"p": np.float32(p), "min_tokens_to_keep": keep}) for p, keep in ((0.3, 1), (0.85, 1), (0.1, 3))),
    *(("epsilon_cutoff", {"epsilon": np.float32(e), "min_tokens_to_keep": k}) for e, k in ((0.02, 1), (0.2, 1), (0.5, 3))),
    *(("eta_cutoff", {"epsilon": np.float32(e), "min_tokens_to_keep": k}) for e, k in ((0.02, 1), (0.2, 1), (0.5, 3))),
    ("renormalize", {}),
]  # fmt: skip
"""All processors of duonlp.generation.processors with arguments."""


def run_processor(ops, name: str, arguments: dict, ids, logits, convert) -> np.ndarray:
    """Return the logits after a processor. ``convert`` creates the framework's arrays; sizes remain Python ints."""
    from duonlp.generation import processors

    values = {k: v if isinstance(v, int) else convert(v) for k, v in arguments.items()}
    process = getattr(processors, name)(ops, **values)
    return np.asarray(process(convert(ids), convert(logits), convert(np.int32(STEP))))
