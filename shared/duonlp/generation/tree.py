"""Score several continuations of a prompt in one forward pass: all behind the prompt, none of which sees another.

The attention mask makes a tree of the row, and each continuation has the positions that follow the prompt. So the prompt is
computed once, without a cache, by the forward pass of any causal language model.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from duonlp.config import TransformerConfig
from duonlp.inputs import LOGIT_POSITIONS
from duonlp.numpy_ops import log_softmax
from duonlp.util.buckets import bucket

Places = list[list[int]]
"""For each continuation, the index into the logit positions of the logits of each of its tokens."""


def label_groups(config: TransformerConfig, words: Sequence[Sequence[int]], most: int) -> list[list[int]]:
    """Return the continuations, by index, that share a row: as many as add at most `most` tokens.

    Where attention has a window, its reach depends on the distance in the row, and every continuation has a row of its own.
    """
    if any(window is not None for window in config.layers.windows):
        return [[i] for i in range(len(words))]
    groups: list[list[int]] = [[]]
    size = 0
    for i, word in enumerate(words):
        size += len(word) - 1
        if groups[-1] and size > most:
            groups.append([])
            size = len(word) - 1
        groups[-1].append(i)
    return groups


def tree_batch(
    config: TransformerConfig, prompts: Sequence[np.ndarray], words: Sequence[Sequence[int]], rows: int
) -> tuple[dict[str, np.ndarray], Places]:
    """Return the inputs of prompts with continuations.

    The last token of a continuation is not part of the row, since nothing follows it.

    Args:
        config: Configuration of a causal language model.
        prompts: Token ids, int [T] each.
        words: Token ids of the continuations, at least one each.
        rows: Most rows of a batch; it has a bucket of up to this number, the first prompt filling it up.

    Returns:
        input_ids and position_ids [B, T], attention_mask [B, T, T], and logit_positions [B, n], all int32; and the places of the
        continuations' logits among the n.
    """
    prompts = [*prompts, *[prompts[0]] * (bucket(len(prompts), rows) - len(prompts))]
    added = sum(len(word) - 1 for word in words)
    width = bucket(max(map(len, prompts)) + added, config.max_length)
    shape = (len(prompts), width)
    ids, positions, mask = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros((*shape, width), np.int32)
    logit_positions = np.zeros((len(prompts), 1 + added), np.int32)
    for row, prompt in enumerate(prompts):
        end = len(prompt)
        ids[row, :end], positions[row, :end] = prompt, np.arange(end)
        mask[row, :, :end] = 1  # causal models hide later tokens by themselves
        logit_positions[row] = end - 1 + np.arange(1 + added)
        for word in words:
            last = end + len(word) - 1
            ids[row, end:last] = word[:-1]
            positions[row, end:last] = len(prompt) + np.arange(len(word) - 1)
            mask[row, end:last, end:last] = 1
            end = last
    places, first = [], 1
    for word in words:
        places.append([0, *range(first, first + len(word) - 1)])
        first += len(word) - 1
    batch = {"input_ids": ids, "position_ids": positions, "attention_mask": mask, LOGIT_POSITIONS: logit_positions}
    return batch, places


def tree_scores(
    logits: np.ndarray, words: Sequence[Sequence[int]], places: Places, combine: Literal["mean", "sum"]
) -> np.ndarray:
    """Return the sum, or mean, of the log probabilities of each continuation's tokens, float32 [B, len(words)].

    Args:
        logits: float32 [B, n, V], at the positions of :func:`tree_batch`.
        words: Token ids of the continuations.
        places: From :func:`tree_batch`.
        combine: Whether to add up or to average.
    """
    logprobs = log_softmax(logits)
    columns = [logprobs[:, at, list(word)] for word, at in zip(words, places, strict=True)]  # [B, tokens] each
    return np.stack([column.sum(1) if combine == "sum" else column.mean(1) for column in columns], 1)
