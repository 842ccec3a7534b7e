"""Data for calibration."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from duonlp import numpy_ops
from duonlp.config import TransformerConfig
from duonlp.errors import InputError
from duonlp.heads import HEADS
from duonlp.inputs import shift_right
from duonlp.labels import WEIGHTS
from duonlp.typing import Array, Batch, Tokenizer
from duonlp.util.tokenization import tokenize

MASKS = {False: "attention_mask", True: "decoder_attention_mask"}
"""Mask of the tokens that a layer reads, by whether they are the decoder's."""


def calibration_batches(
    tokenizer: Tokenizer, texts: Sequence[str], batch_size: int = 32, max_length: int = 128
) -> list[dict[str, np.ndarray]]:
    """Tokenize texts into batches of model inputs.

    Args:
        tokenizer: The model's tokenizer.
        texts: Typical inputs; a few hundred suffice.
        batch_size: Texts per batch.
        max_length: Tokens to which a text is truncated. All batches are padded to one length, so that they compile once.

    Raises:
        InputError: There is no text, or a size is not positive.
    """
    if isinstance(texts, str):
        raise InputError(f"texts is the string {texts[:40]!r}; pass a list of texts")
    for name, size in (("batch_size", batch_size), ("max_length", max_length)):
        if size < 1:
            raise InputError(f"{name} is {size}; it must be at least 1")
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise InputError("there is no text to calibrate with; pass at least one, better a few hundred")
    rows = tokenize(tokenizer, texts, truncation=True, max_length=max_length)
    longest = max(map(len, rows["input_ids"]))
    # Padded here, since a tokenizer such as GPT-2's has no padding token: the mask leaves it out.
    fill = {"input_ids": tokenizer.pad_token_id or 0}
    arrays = {
        name: np.array([[*row, *[fill.get(name, 0)] * (longest - len(row))] for row in values], np.int32)
        for name, values in rows.items()
    }
    return [
        {name: values[i : i + batch_size] for name, values in arrays.items()} for i in range(0, len(texts), batch_size)
    ]


def batches_of(batches: Any, cfg: TransformerConfig, head: str) -> list[dict[str, Array]]:
    """Return calibration batches as a list of dicts, which can be read several times.

    Args:
        batches: Dicts of arrays, or batches with ``epoch(n)`` as training takes them. Labels and their weights are dropped;
            those that become the inputs of a decoder are shifted.
        cfg: The model.
        head: Its head.

    Raises:
        InputError: There is no batch, or one is not a dict.
    """
    stream = batches.epoch(0) if hasattr(batches, "epoch") else batches
    out = list(_inputs([stream] if isinstance(stream, Mapping) else stream, cfg, head))
    if not out:
        raise InputError("there are no calibration batches; pass at least one, better some hundred rows in all")
    masks = [batch[name] for batch in out for name in MASKS.values() if name in batch]
    if masks and not any(np.any(mask) for mask in masks):
        raise InputError(
            "the calibration batches are all padding; pass texts whose attention_mask is 1 at their tokens"
        )
    return out


def _inputs(stream: Iterable[Batch], cfg: TransformerConfig, head: str) -> Iterator[dict[str, Array]]:
    names = {*HEADS[head].label_names, WEIGHTS}
    for batch in stream:
        if not isinstance(batch, Mapping):
            raise InputError(
                f"a calibration batch is a {type(batch).__name__}; pass dicts of the model's inputs, such as "
                "duonlp.quantization.calibration_batches(tokenizer, texts)"
            )
        inputs = {name: np.asarray(value) for name, value in batch.items() if name not in names and value is not None}
        if cfg.decoder is not None and HEADS[head].shifts_labels and batch.get("labels") is not None:
            inputs.setdefault("decoder_input_ids", shift_right(numpy_ops, batch["labels"], cfg))
        yield inputs


def rows_without_padding(path: str, x: np.ndarray, inputs: Mapping[str, Array]) -> np.ndarray:
    """Return the rows [m, n] of a layer's inputs [..., n] that belong to real tokens.

    Args:
        path: Path of the layer.
        x: Its inputs.
        inputs: The model's inputs, with the masks.
    """
    rows = x.reshape(-1, x.shape[-1])
    reads_source = "/cross_attention/key" in path or "/cross_attention/value" in path
    mask = inputs.get(MASKS[path.startswith("decoder") and "decoder_input_ids" in inputs and not reads_source])
    if mask is None or np.size(mask) != len(rows):  # the layer reads one vector per text, or all tokens are real
        return rows
    return rows[np.reshape(mask, -1) != 0]
