"""Inputs on which frameworks are compared."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from duonlp.checkpoints.checkpoint import Checkpoint
from duonlp.config import TransformerConfig
from duonlp.errors import CheckpointError, InputError
from duonlp.heads import HEADS
from duonlp.inputs import input_specs
from duonlp.util.tokenization import tokenize

TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "Paris is the capital of France, and has been so for most of a thousand years.",
    "Yes!",
)

DECODER_LENGTH = 5
"""Number of decoder input tokens."""


def make_inputs(
    checkpoint: Checkpoint,
    config: TransformerConfig,
    head: str,
    inputs: str | Sequence[str] | Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Return a batch made from texts, right-padded, or from arrays; by default from default texts or random numbers.

    Raises:
        InputError: The arrays lack the model's main input, a text has no tokens, or the model reads no texts.
    """
    specs = {spec.name: spec for spec in input_specs(config, head)}
    main = next(iter(specs.values()))
    if isinstance(inputs, Mapping):
        if main.name not in inputs:
            raise InputError(
                f"inputs has {', '.join(inputs) or 'no arrays'}; it needs {main.name}, {main.dtype} {main}"
            )
        dtypes = {name: spec.dtype for name, spec in specs.items()}
        batch = {name: np.asarray(value, dtypes.get(name, "int32")) for name, value in inputs.items()}
        return ({"attention_mask": np.ones_like(batch[main.name])} if "attention_mask" in specs else {}) | batch
    if main.source != "tokens":
        if inputs is not None:
            raise InputError(
                f"a {config.model_type} reads no texts; pass {main.name}, {main.dtype} {main}, as an array"
            )
        shape = [3 if size is None else size for size in main.shape]
        return {main.name: np.random.default_rng(0).standard_normal(shape, np.float32)}
    texts = [inputs] if isinstance(inputs, str) else list(TEXTS if inputs is None else inputs)
    try:
        rows = _tokenize(checkpoint, config, texts)
    except CheckpointError:
        if inputs is not None:
            raise
        rng = np.random.default_rng(0)
        lengths = [min(n, config.max_length) for n in (12, 7, 3)]
        rows = [rng.integers(0, config.embedding.vocab_size, n).tolist() for n in lengths]
        if config.classification.token == "last_eos":
            rows = [[*(i for i in row[:-1] if i != config.eos_token_id), config.eos_token_id] for row in rows]
    length = max(map(len, rows))
    pad = config.pad_token_id if config.pad_token_id is not None else 0
    batch = {
        "input_ids": np.array([row + [pad] * (length - len(row)) for row in rows], np.int32),
        "attention_mask": np.array([[1] * len(row) + [0] * (length - len(row)) for row in rows], np.int32),
    }
    if config.decoder is not None and HEADS[head].reads_target:
        # Random ids will do: all frameworks get the same ones.
        rng, size = np.random.default_rng(0), (len(rows), DECODER_LENGTH)
        batch["decoder_input_ids"] = rng.integers(0, config.decoder.embedding.vocab_size, size, np.int32)
    if HEADS[head].has_choices:  # [B, T] -> [1, choices, T]
        batch = {name: value[None] for name, value in batch.items()}
    return batch


def _tokenize(checkpoint: Checkpoint, config: TransformerConfig, texts: list[str]) -> list[list[int]]:
    tokenizer: Any = checkpoint.tokenizer()
    limit = min(config.max_length, int(min(tokenizer.model_max_length, 10**9)))
    encoded = tokenize(tokenizer, texts, truncation=True, max_length=limit)["input_ids"]
    if not all(encoded):
        raise InputError("an input has no tokens after tokenization; remove it")
    return encoded
