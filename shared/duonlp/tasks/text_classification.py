"""Text classification: labels with scores for a text or a pair of texts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from duonlp.errors import InputError
from duonlp.tasks.base import Example, Task, TruncationOptions, check_choice, check_int, check_text, describe, softmax

UNSET = "unset"
"""Default of `top_k`: the best label alone, not in a list."""


@dataclass(frozen=True)
class TextClassificationOptions(TruncationOptions):
    """top_k: how many labels, best first; None for all. Without it the result is the one best label.

    function_to_apply: "sigmoid", "softmax" or "none"; None decides by the model's problem type and labels.
    """

    top_k: int | str | None = UNSET
    function_to_apply: str | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.top_k != UNSET:
            check_int("top_k", self.top_k, minimum=1, optional=True)
        if isinstance(self.function_to_apply, str):  # "Sigmoid" is understood too
            object.__setattr__(self, "function_to_apply", self.function_to_apply.lower())
        check_choice("function_to_apply", self.function_to_apply, ("sigmoid", "softmax", "none", None))


class TextClassificationTask(Task):
    """Text -> {"label", "score"}, or a list of them with `top_k`, as Transformers' TextClassificationPipeline.

    A pair of texts is given as ``{"text": ..., "text_pair": ...}``.
    """

    name = "text-classification"
    head = "sequence-classification"
    Options = TextClassificationOptions
    per_token = False

    def __init__(self, tokenizer, config, folder=None):
        super().__init__(tokenizer, config, folder)
        # A model that reads the last token and knows no padding would read padding: its rows go unpadded.
        last = config.classification.token in ("last", "last_non_padding")
        self.buckets = not (last and config.pad_token_id is None)

    @property
    def wants(self):
        return 'a text, a pair {"text": ..., "text_pair": ...}, a list or an iterator of them'

    def arrange(self, inputs, keywords):
        arranged = super().arrange(inputs, keywords)
        # Transformers puts the result for one plain text into a list, unless top_k made it a list already.
        arranged.wrap = isinstance(inputs, str) and "top_k" not in keywords
        return arranged

    def output_width(self):
        return self.config.num_labels

    def encode(self, items, options, first=0):
        texts, pairs = [], []
        for i, item in enumerate(items):
            text, pair = self.parts(item, f"{self.name}: input {first + i}")
            texts.append(text)
            pairs.append(pair)
        rows: list[Any] = [None] * len(items)
        for paired in (False, True):
            chosen = [i for i, pair in enumerate(pairs) if (pair is not None) == paired]
            if chosen:
                given = [[source[i] for i in chosen] for source in ((texts, pairs) if paired else (texts,))]
                numbers = [first + i for i in chosen]
                encoded = self.rows(self.tokenize(*given, options=options), items=numbers)
                for i, row in zip(chosen, encoded, strict=True):
                    rows[i] = [Example(row, group=None if self.buckets else len(row["input_ids"]))]
        return rows

    def parts(self, item: Any, where: str) -> tuple[str, str | None]:
        """An item as (text, second text or None); raises InputError when it is neither a text nor a pair."""
        if isinstance(item, list) and len(item) == 1 and is_pair(item[0]):
            return item[0][0], item[0][1]  # [[text, pair]]: an older way to give a pair
        if not isinstance(item, Mapping):
            if isinstance(item, (list, tuple)):
                raise InputError(
                    f'{where} is {describe(item)}; a pair of texts is given as {{"text": ..., "text_pair": ...}}'
                )
            return check_text(item, where), None
        unknown = [key for key in item if key not in ("text", "text_pair")]
        if unknown or "text" not in item:
            raise InputError(
                f'{where} has the keys {", ".join(map(repr, item))}; it needs "text" and may have "text_pair"'
            )
        pair = item.get("text_pair")
        return check_text(item["text"], f"{where}, text"), (
            None if pair is None else check_text(pair, f"{where}, text_pair")
        )

    def decode(self, item, examples, outputs, options):
        scores = self.scores(outputs[0]["logits"], options.function_to_apply)
        labels = self.config.labels
        if options.top_k == UNSET:
            best = int(scores.argmax())
            return {"label": labels[best], "score": float(scores[best])}
        order = np.argsort(-scores, kind="stable")[: options.top_k]
        return [{"label": labels[i], "score": float(scores[i])} for i in order.tolist()]

    def scores(self, logits: np.ndarray, function: str | None) -> np.ndarray:
        """Logits [labels] to scores, by the function asked for or else the one the model was trained with."""
        if function is None:
            problem = self.config.problem_type
            if problem == "regression":
                function = "none"
            elif problem == "multi_label_classification" or self.config.num_labels == 1:
                function = "sigmoid"
            else:
                function = "softmax"
        if function == "sigmoid":
            return (1.0 / (1.0 + np.exp(-logits.astype(np.float64)))).astype(np.float32)
        return softmax(logits) if function == "softmax" else logits


def is_pair(item: Any) -> bool:
    """Whether `item` is a list of two texts."""
    return isinstance(item, list) and len(item) == 2 and all(isinstance(text, str) for text in item)
