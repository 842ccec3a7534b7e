"""Losses of prompts with a masked language model: PET's and ADAPET's.

A label has words, and a word has one token per mask. All functions take the logits at the masks, [B, K, V] for K masks; a word of
fewer tokens reads the first masks and ignores the others (Schick & Schütze 2021, https://arxiv.org/abs/2009.07118, section 3.1).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import ClassVar, Literal

import numpy as np

from duonlp.config import TransformerConfig
from duonlp.errors import InputError
from duonlp.heads import HEADS, IGNORED, ROW_MASK
from duonlp.training.objectives.objective import Group, Objective, Terms
from duonlp.typing import Array, Batch, Ops

Words = tuple[tuple[tuple[int, ...], ...], ...]
"""Token ids of each word of each label."""

TEXT = "text_"
"""Prefix of the inputs whose masked text tokens are predicted."""

NEVER = -1e9
"""Logit of a token that takes no part in a sum of probabilities."""

SMALLEST = 1e-7
"""Least complement of a probability, about the resolution of float32 near 1."""


@dataclass(frozen=True)
class WordTable:
    """The words of all labels as arrays, E words in all, C labels, K masks.

    Attributes:
        ids: int32 [K, E], token of each word at each mask, 0 beyond its length.
        used: float32 [K, E], 1 where the word has a token.
        labels: bool [C, E], whether a word is one of the label's.
    """

    ids: np.ndarray
    used: np.ndarray
    labels: np.ndarray


@lru_cache(maxsize=16)
def word_table(words: Words) -> WordTable:
    """Return the words as arrays."""
    flat = [(label, word) for label, of_label in enumerate(words) for word in of_label]
    ids = np.zeros((max(len(word) for _, word in flat), len(flat)), np.int32)
    used, labels = np.zeros(ids.shape, np.float32), np.zeros((len(words), len(flat)), bool)
    for column, (label, word) in enumerate(flat):
        ids[: len(word), column], used[: len(word), column], labels[label, column] = word, 1.0, True
    return WordTable(ids, used, labels)


def token_scores(ops: Ops, logits: Array, words: Words, against_rest: bool) -> Array:
    """Return the score of each word's token at each mask, float32 [B, K, E].

    Args:
        ops: Array operations of the framework.
        logits: [B, K, V].
        words: Words of the labels.
        against_rest: Whether a score is the log odds of the token against all tokens that no label has at this mask; otherwise
            it is the token's log probability. The odds of one label do not depend on those of the others.
    """
    table, logits = word_table(words), ops.cast(logits, "float32")
    if against_rest:
        is_label = np.zeros((len(table.ids), logits.shape[-1]), bool)
        for ids, used, row in zip(table.ids, table.used, is_label, strict=True):
            row[ids[used > 0]] = True
        rest = ops.where(ops.expand_dims(ops.cast(is_label, "bool"), 0), NEVER, logits)
        largest = ops.stop_gradient(ops.max(rest, axis=-1, keepdims=True))
        logits = logits - largest - ops.log(ops.sum(ops.exp(rest - largest), axis=-1, keepdims=True))
    else:
        logits = ops.log_softmax(logits)
    ids = ops.expand_dims(ops.cast(table.ids, "int32"), 0)
    return ops.take_along(logits, ops.broadcast_to(ids, (ops.size(logits, 0), *table.ids.shape)), 2)


def label_scores(ops: Ops, logits: Array, words: Words, combine: Literal["mean", "sum"], against_rest: bool) -> Array:
    """Return the score of each label, float32 [B, C]: the mean over its words of the mean, or sum, of their tokens' scores.

    With words of one token, ``softmax`` of the scores is the probability of PET (Schick & Schütze 2021,
    https://arxiv.org/abs/2001.07676, section 3.1).

    Args:
        ops: Array operations of the framework.
        logits: [B, K, V].
        words: Words of the labels.
        combine: Whether the scores of a word's tokens are averaged or added up.
        against_rest: See :func:`token_scores`.
    """
    table = word_table(words)
    weights = table.used / table.used.sum(0) if combine == "mean" else table.used
    of_words = ops.sum(token_scores(ops, logits, words, against_rest) * ops.cast(weights, "float32"), axis=1)  # [B, E]
    share = table.labels.T / table.labels.sum(1)  # [E, C]
    return ops.matmul(of_words, ops.cast(share.astype(np.float32), "float32"))


def log_odds(ops: Ops, logprobs: Array) -> Array:
    """Return log(p / (1 - p)) for log probabilities."""
    return logprobs - ops.log(ops.maximum(1.0 - ops.exp(logprobs), SMALLEST))


def _is_real(ops: Ops, batch: Batch) -> Array:
    """Return bool [B], whether a row is more than filling."""
    return ops.cast(batch[ROW_MASK], "bool")


@dataclass(frozen=True)
class PromptLoss(Objective):
    """Cross-entropy over the labels' words, of pattern-exploiting training (https://arxiv.org/abs/2001.07676, section 3.1).

    For several labels per text, it is the binary cross-entropy of each label, whose logit is the log odds of its words against
    the tokens that no label has, minus `prior`.

    Batches have inputs with masks, ``logit_positions`` int [B, K] (the masks), ``labels`` int [B] or float [B, C], and
    ``row_mask`` [B].

    Attributes:
        words: Token ids of each word of each label.
        multi_label: Whether a text may have several labels, or none.
        combine: See :func:`label_scores`.
        prior: Log odds of each label without a text, for several labels per text; () for zeros.
    """

    words: Words
    multi_label: bool = False
    combine: Literal["mean", "sum"] = "mean"
    prior: tuple[float, ...] = ()

    groups: ClassVar[tuple[Group, ...]] = (Group(),)

    def terms(
        self, ops: Ops, losses: ModuleType, head: str, config: TransformerConfig, outputs: Sequence[Mapping[str, Array]],
        batch: Batch, parameters: Mapping[str, Array],
    ) -> Terms:  # fmt: skip
        """Return the term "labels"."""
        logits, real, labels = outputs[0]["logits"], _is_real(ops, batch), batch["labels"]
        scores = label_scores(ops, logits, self.words, self.combine, self.multi_label)
        if self.multi_label:
            if self.prior:
                scores = scores - ops.cast(np.asarray(self.prior, np.float32), "float32")
            return {"labels": (*losses.binary_cross_entropy_sum(scores, labels, ops.expand_dims(real, 1)), 1.0)}
        return {"labels": (*losses.cross_entropy_sum(scores, ops.where(real, labels, IGNORED)), 1.0)}

    def check_model(self, head: str, config: TransformerConfig) -> None:
        """Raise InputError unless the model predicts tokens at given positions, in both directions."""
        if not HEADS[head].selects_positions or config.causal or config.decoder is not None:
            raise InputError(
                f"the model is a {config.model_type} with the head {head}; prompts need a masked language model"
            )

    def check(self, head: str, config: TransformerConfig, batch: Batch) -> None:
        """Raise InputError unless a batch of NumPy arrays has the inputs of all groups, labels and a row mask."""
        super().check(head, config, batch)
        for group in self.groups:
            names = [f"{group.prefix}{name}" for name in ("logit_positions", "labels")]
            if missing := [name for name in (*names, ROW_MASK) if name not in batch]:
                raise InputError(
                    f"the batch has {', '.join(batch)}; {type(self).__name__} needs {', '.join(missing)} too"
                )


@dataclass(frozen=True)
class PromptAndTextLoss(PromptLoss):
    """PromptLoss with masked language modeling of further texts (https://arxiv.org/abs/2001.07676, section 3.2).

    The loss is (1 - alpha) L_labels + alpha L_text. Batches also have the inputs of the texts with the prefix "text_", among them
    ``text_logit_positions`` int [B, M], and ``text_labels`` int [B, M], the masked tokens; -100 at unused positions.

    Attributes:
        alpha: Share of the texts' loss.
    """

    alpha: float = 1e-4

    groups: ClassVar[tuple[Group, ...]] = (Group(), Group(TEXT))

    def terms(
        self, ops: Ops, losses: ModuleType, head: str, config: TransformerConfig, outputs: Sequence[Mapping[str, Array]],
        batch: Batch, parameters: Mapping[str, Array],
    ) -> Terms:  # fmt: skip
        """Return the terms "labels" and "text"."""
        total, count, _ = super().terms(ops, losses, head, config, outputs, batch, parameters)["labels"]
        labels = ops.where(ops.expand_dims(_is_real(ops, batch), 1), batch[TEXT + "labels"], IGNORED)
        text = losses.cross_entropy_sum(outputs[1]["logits"], labels)
        return {"labels": (total, count, 1 - self.alpha), "text": (*text, self.alpha)}


@dataclass(frozen=True)
class DecoupledLoss(PromptLoss):
    """ADAPET's decoupled label loss and label-conditioned masked language modeling (Tam et al. 2021, https://arxiv.org/abs/2103.11955).

    The decoupled loss is the mean binary cross-entropy of the probability of each label's tokens at the masks, among the whole
    vocabulary: 1 for those of the text's labels, 0 for those of others (section 3.1). A token that all labels have at a mask says
    nothing and is left out, as in the authors' code. With several labels per text, several tokens cannot all have a probability
    near 1 at one mask, so a token's odds are those against the tokens that no label has.

    The label-conditioned loss reads the text in the pattern with a label in place of the masks, some tokens of the text masked:
    the mean binary cross-entropy of the probability of the masked tokens, 1 if the text has the label and 0 if not (section 3.2).
    Batches have these inputs with the prefix "text_", ``text_logit_positions`` and ``text_labels`` int [B, M] as in
    PromptAndTextLoss, and ``text_target`` float [B], whether the label is right.
    """

    groups: ClassVar[tuple[Group, ...]] = (Group(), Group(TEXT))

    def terms(
        self, ops: Ops, losses: ModuleType, head: str, config: TransformerConfig, outputs: Sequence[Mapping[str, Array]],
        batch: Batch, parameters: Mapping[str, Array],
    ) -> Terms:  # fmt: skip
        """Return the terms "labels" and "text"."""
        table, real = word_table(self.words), _is_real(ops, batch)
        scores = token_scores(ops, outputs[0]["logits"], self.words, self.multi_label)  # [B, K, E]
        odds = scores if self.multi_label else log_odds(ops, scores)
        targets, counted = _token_targets(ops, batch["labels"], table, self.multi_label)
        mask = ops.cast(ops.expand_dims(real, (1, 2)), "float32") * ops.cast(counted, "float32")
        decoupled = losses.binary_cross_entropy_sum(odds, targets, mask)

        labels = batch[TEXT + "labels"]  # [B, M]
        logprobs = ops.log_softmax(ops.cast(outputs[1]["logits"], "float32"))
        logprobs = ops.take_along(logprobs, ops.expand_dims(ops.maximum(labels, 0), -1), 2)[:, :, 0]
        target = ops.broadcast_to(ops.expand_dims(ops.cast(batch[TEXT + "target"], "float32"), 1), (
            ops.size(labels, 0), ops.size(labels, 1)
        ))  # fmt: skip
        masked = ops.expand_dims(real, 1) & (labels != IGNORED)
        conditioned = losses.binary_cross_entropy_sum(log_odds(ops, logprobs), target, masked)
        return {"labels": (*decoupled, 1.0), "text": (*conditioned, 1.0)}

    def check(self, head: str, config: TransformerConfig, batch: Batch) -> None:
        """Raise InputError unless a batch of NumPy arrays has everything that the loss reads."""
        super().check(head, config, batch)
        if TEXT + "target" not in batch:
            raise InputError(f"the batch has {', '.join(batch)}; DecoupledLoss needs {TEXT}target too")


def _token_targets(ops: Ops, labels: Array, table: WordTable, multi_label: bool) -> tuple[Array, np.ndarray]:
    """Return whether each word's token at each mask is one of a label of the text, float32 [B, K, E], and which count, [K, E]."""
    # A label has a token at a mask if one of its words has; another label's word with this token is no negative.
    same = (table.ids[:, :, None] == table.ids[:, None, :]) & (table.used[:, None, :] > 0)  # [K, E, E]
    has_token = (same[:, :, None, :] & table.labels).any(-1)  # [K, E, C]
    counted = (table.used > 0) & ~(has_token.all(-1) & (len(table.labels) > 1))
    if multi_label:
        members = ops.cast(labels, "float32")
    else:
        members = ops.cast(ops.expand_dims(labels, 1) == ops.arange(len(table.labels)), "float32")  # [B, C]
    flat = has_token.reshape(-1, len(table.labels)).T.astype(np.float32)  # [C, K x E]
    targets = ops.minimum(ops.matmul(members, ops.cast(flat, "float32")), 1.0)
    return ops.reshape(targets, (-1, *table.ids.shape)), counted
