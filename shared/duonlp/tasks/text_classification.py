"""Text classification: labels with scores for a text or a pair of texts."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from duonlp.config import TransformerConfig
from duonlp.tasks.base import (
    Example,
    ParsedInputs,
    check_function_to_apply,
    check_int,
    class_scores,
    ranked_labels,
)
from duonlp.tasks.text import TextTask, TruncationOptions, text_and_pair
from duonlp.typing import Tokenizer

UNSET = "unset"
"""Default of ``top_k``: only the best label, not in a list."""


@dataclass(frozen=True)
class TextClassificationOptions(TruncationOptions):
    """Options of text classification.

    Attributes:
        top_k: Number of labels to return, best first; None for all. By default the result is the best label, not in a list.
        function_to_apply: "sigmoid", "softmax" or "none"; None chooses by the model's problem type and labels.
    """

    top_k: int | str | None = UNSET
    function_to_apply: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k != UNSET:
            check_int("top_k", self.top_k, minimum=1, optional=True)
        check_function_to_apply(self)


class TextClassificationTask(TextTask[TextClassificationOptions]):
    """Text -> {"label", "score"}, or a list of those with ``top_k``, like Transformers' TextClassificationPipeline.

    A pair of texts is passed as ``{"text": ..., "text_pair": ...}``.
    """

    name = "text-classification"
    head = "sequence-classification"
    Options = TextClassificationOptions
    per_token = False

    def __init__(
        self, tokenizer: Tokenizer, config: TransformerConfig, folder: str | os.PathLike[str] | None = None
    ) -> None:
        super().__init__(tokenizer, config, folder)
        self.buckets = may_pad(config)

    @property
    def accepted_inputs(self) -> str:
        return 'a text, a pair {"text": ..., "text_pair": ...}, or a list or an iterator of those'

    def parse_inputs(self, inputs: Any, keywords: dict[str, Any]) -> ParsedInputs:
        parsed = super().parse_inputs(inputs, keywords)
        # Transformers wraps the result for one plain text in a list, unless top_k already makes it one.
        parsed.wrap = isinstance(inputs, str) and "top_k" not in keywords
        return parsed

    def output_width(self) -> int:
        return self.config.num_labels

    def encode(self, items: Sequence[Any], options: TextClassificationOptions, first: int = 0) -> list[list[Example]]:
        texts, pairs = [], []
        for i, item in enumerate(items):
            if isinstance(item, list) and len(item) == 1 and is_pair(item[0]):
                text, pair = item[0]  # [[text, pair]], the legacy format of Transformers
            else:
                text, pair = text_and_pair(item, f"{self.name}: input {first + i}")
            texts.append(text)
            pairs.append(pair)
        rows: list[Any] = [None] * len(items)
        for paired in (False, True):
            indices = [i for i, pair in enumerate(pairs) if (pair is not None) == paired]
            if indices:
                arguments = [[column[i] for i in indices] for column in ((texts, pairs) if paired else (texts,))]
                numbers = [first + i for i in indices]
                encoded = self.rows(self.tokenize(*arguments, options=options), items=numbers)
                for i, row in zip(indices, encoded, strict=True):
                    rows[i] = [Example(row, group=None if self.buckets else len(row["input_ids"]))]
        return rows

    def decode(
        self,
        item: Any,
        examples: Sequence[Example],
        outputs: Sequence[dict[str, Any]],
        options: TextClassificationOptions,
    ) -> dict[str, Any] | list[dict[str, Any]]:
        scores = class_scores(outputs[0]["logits"], self.config, options.function_to_apply)
        if isinstance(options.top_k, str):  # UNSET
            best = int(scores.argmax())
            return {"label": self.config.labels[best], "score": float(scores[best])}
        return ranked_labels(scores, self.config, options.top_k)


def may_pad(config: TransformerConfig) -> bool:
    """Return False for a classifier that pools the last token but has no padding token, and so would pool padding."""
    return config.pad_token_id is not None or config.classification.token not in ("last", "last_non_padding")


def is_pair(item: Any) -> bool:
    """Return whether ``item`` is a list of two texts."""
    return isinstance(item, list) and len(item) == 2 and all(isinstance(text, str) for text in item)
