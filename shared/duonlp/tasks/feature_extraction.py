"""Feature extraction: the last hidden state of every token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from duonlp.errors import InputError
from duonlp.tasks.base import Example, check_bool, describe
from duonlp.tasks.text import TextTask, TruncationOptions


@dataclass(frozen=True)
class FeatureExtractionOptions(TruncationOptions):
    """Options of feature extraction.

    Attributes:
        return_tensors: Return float32 arrays [1, tokens, hidden] instead of nested lists.
    """

    return_tensors: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bool("return_tensors", self.return_tensors)


class FeatureExtractionTask(TextTask[FeatureExtractionOptions]):
    """Text -> [1, tokens, hidden], like Transformers' FeatureExtractionPipeline."""

    name = "feature-extraction"
    head = "base"
    Options = FeatureExtractionOptions
    outputs = ("last_hidden_state",)

    def rewrite_options(self, changes: dict[str, Any]) -> dict[str, Any]:
        return merge_tokenizer_options(self.name, changes, "tokenize_kwargs")

    def encode(self, items: Sequence[Any], options: FeatureExtractionOptions, first: int = 0) -> list[list[Example]]:
        encoded = self.tokenize(self.texts(items, first), options=options)
        return [[Example(row)] for row in self.rows(encoded, first)]

    def decode(
        self,
        item: Any,
        examples: Sequence[Example],
        outputs: Sequence[dict[str, Any]],
        options: FeatureExtractionOptions,
    ) -> np.ndarray | list[list[list[float]]]:
        features = outputs[0]["last_hidden_state"][None]  # [1, T, H]
        return features if options.return_tensors else features.tolist()


def merge_tokenizer_options(task: str, changes: dict[str, Any], name: str) -> dict[str, Any]:
    """Move ``truncation`` and ``max_length`` out of a dict of tokenizer keywords, where Transformers takes them.

    Args:
        task: Name of the task.
        changes: Options of the call.
        name: Name of the option that holds the dict.

    Raises:
        InputError: the option is not a dict, has unsupported keys, or repeats an option of the call.
    """
    if name not in changes:
        return changes
    changes = dict(changes)
    nested = changes.pop(name)
    if not isinstance(nested, dict):
        raise InputError(f"{name} is {describe(nested)}; expected a dict such as {{'truncation': True}}")
    for key, value in nested.items():
        if key not in ("truncation", "max_length"):
            raise InputError(f"{task} has no tokenizer option {key!r}; {name} accepts truncation and max_length")
        if key in changes:
            raise InputError(f"{key} is passed twice, as a keyword and in {name}; pass it once")
        changes[key] = value
    return changes
