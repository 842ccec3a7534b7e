"""Zero-shot classification: labels that a model was not trained on, by whether the text entails a hypothesis about each."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from duonlp.config import TransformerConfig
from duonlp.errors import InputError
from duonlp.tasks.base import Example, Options, ParsedInputs, check_bool, check_int, check_string, describe, softmax
from duonlp.tasks.text import TextTask
from duonlp.tasks.text_classification import may_pad
from duonlp.typing import Tokenizer
from duonlp.util.reading import is_unicode
from duonlp.util.tokenization import pair_rows

PREFIX = "entail"
"""Start of the name of the label that means entailment, in any case."""

PROBE = "\N{REPLACEMENT CHARACTER}label"
"""A label that no template contains."""


@dataclass(frozen=True)
class ZeroShotClassificationOptions(Options):
    """Options of zero-shot classification.

    Attributes:
        candidate_labels: The labels: a list, or a text of comma-separated labels, around which spaces do not count.
        hypothesis_template: Hypothesis about a label, which takes the place of "{}".
        multi_label: Whether several labels can hold together: each is then scored on its own, by entailment against
            contradiction. Otherwise scores add up to 1.
        max_length: Maximum number of tokens of a text with a hypothesis, to which the text is truncated (default: the model's
            limit).
        entailment_label: The model's label that means entailment, its name or its index; None for the one whose name starts with
            "entail".
    """

    candidate_labels: str | Sequence[str] | None = None
    hypothesis_template: str = "This example is {}."
    multi_label: bool = False
    max_length: int | None = None
    entailment_label: str | int | None = None

    def __post_init__(self) -> None:
        if self.candidate_labels is not None:
            object.__setattr__(self, "candidate_labels", check_candidates(self.candidate_labels))
        check_template(self.hypothesis_template)
        check_bool("multi_label", self.multi_label)
        check_int("max_length", self.max_length, minimum=1, optional=True)
        if isinstance(self.entailment_label, (bool, float)):
            check_string("entailment_label", self.entailment_label)

    @property
    def labels(self) -> tuple[str, ...]:
        """The candidate labels.

        Raises:
            InputError: There are none.
        """
        if self.candidate_labels is None:
            raise InputError(
                "zero-shot-classification got no candidate_labels",
                remedy='pass a list of labels, or a text such as "politics, sports"', argument="candidate_labels",
            )  # fmt: skip
        return tuple(self.candidate_labels)


def check_candidates(labels: Any) -> tuple[str, ...]:
    """Return candidate labels as a tuple; a text is split at its commas.

    Raises:
        InputError: There are none, or one is not a text or is blank.
    """
    if isinstance(labels, str):
        parts = tuple(label.strip() for label in labels.split(",") if label.strip())
    elif isinstance(labels, Sequence) and not isinstance(labels, (bytes, bytearray)):
        parts = tuple(labels)
    else:
        raise InputError(f"candidate_labels is {describe(labels)}; pass a list of labels, or a comma-separated text")
    if not parts:
        raise InputError(f"candidate_labels is {labels!r}, which has no labels; pass at least one")
    for label in parts:
        if not isinstance(label, str) or not label.strip() or not is_unicode(label):
            raise InputError(f"candidate_labels has {describe(label)}; every label must be a text with some characters")
    return parts


def check_template(template: Any) -> str:
    """Return a hypothesis template.

    Raises:
        InputError: It is not a text, or no label can be put in.
    """
    check_string("hypothesis_template", template)
    try:
        has_label = PROBE in template.format(PROBE)
    except (IndexError, KeyError, ValueError, AttributeError, TypeError):
        has_label = False
    if not has_label:
        raise InputError(
            f'hypothesis_template is {template!r}; it must have one "{{}}", where the label goes, as in "This is about {{}}."'
        )
    return template


class ZeroShotClassificationTask(TextTask[ZeroShotClassificationOptions]):
    """Text -> {"sequence", "labels", "scores"}, best label first, like Transformers' ZeroShotClassificationPipeline.

    A classifier of premise and hypothesis reads each text with a hypothesis about each label (Yin et al. 2019,
    https://arxiv.org/abs/1909.00161). The score of a label is the softmax of the entailment logits over all labels, or with
    ``multi_label`` or a single label the softmax over contradiction and entailment. As in Transformers, contradiction is the
    first label, or the last if entailment is the first.

    Raises:
        InputError: ``entailment_label`` is not a label of the model, or none of its labels starts with "entail".
    """

    name = "zero-shot-classification"
    head = "sequence-classification"
    Options = ZeroShotClassificationOptions
    per_token = False
    fast_tokenizer = False
    remedy = "shorten the label or the template"
    input_options = ("candidate_labels",)

    def __init__(
        self, tokenizer: Tokenizer, config: TransformerConfig, folder: str | os.PathLike[str] | None = None
    ) -> None:
        super().__init__(tokenizer, config, folder)
        self.buckets = may_pad(config)

    def check_options(self, options: ZeroShotClassificationOptions) -> None:
        self.entailment(options)

    def entailment(self, options: ZeroShotClassificationOptions) -> int:
        """Return the index of the model's label that means entailment."""
        names, label = [str(name) for name in self.config.labels], options.entailment_label
        if len(names) < 2:
            raise InputError(f"{self.name} needs a model with two labels or more, but this one has {', '.join(names)}")
        if label is None:
            found = [i for i, name in enumerate(names) if name.lower().startswith(PREFIX)]
            problem = f"the model's labels are {', '.join(names)}, none of which starts with {PREFIX!r}"
        elif isinstance(label, str):
            found = [i for i, name in enumerate(names) if name.lower() == label.lower()]
            problem = f"entailment_label is {label!r}, but the model's labels are {', '.join(names)}"
        else:
            found = [i for i in range(len(names)) if i == label]
            problem = (
                f"entailment_label is {label!r}, but the model has labels 0 to {len(names) - 1}: {', '.join(names)}"
            )
        if not found:
            raise InputError(
                f"{problem}; use a model trained on natural language inference, or name its label that means entailment with "
                "entailment_label"
            )
        return found[0]

    def positional(self, inputs: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if len(args) != 1 or "candidate_labels" in keywords:
            raise InputError(
                f"{self.name} takes one positional argument after the texts, candidate_labels, and got {len(args)}"
                + (" and candidate_labels=" if "candidate_labels" in keywords else "")
            )
        return inputs, keywords | {"candidate_labels": args[0]}

    def parse_inputs(self, inputs: Any, keywords: dict[str, Any]) -> ParsedInputs:
        if inputs is None and "sequences" in keywords:  # Transformers' name
            keywords = dict(keywords)
            inputs = keywords.pop("sequences")
        if inputs is not None:
            _ = ZeroShotClassificationOptions(
                candidate_labels=keywords.get("candidate_labels")
            ).labels  # before a stream is read
        return super().parse_inputs(inputs, keywords)

    def output_width(self) -> int:
        return self.config.num_labels

    def chunk_size(self, rows: int) -> int:
        return max(256, rows * 4)  # each with a row per label

    def encode(
        self, items: Sequence[Any], options: ZeroShotClassificationOptions, first: int = 0
    ) -> list[list[Example]]:
        texts, limit = self.texts(items, first), self.limit()
        hypotheses = [options.hypothesis_template.format(label) for label in options.labels]
        length = min((n for n in (limit, options.max_length) if n is not None), default=None)
        pairs = pair_rows(self.tokenizer, texts, hypotheses, length)
        examples = []
        for i, encoded in enumerate(pairs):
            columns = {name: [row[name] for row in encoded] for name in encoded[0]}
            longest = max(map(len, columns["input_ids"]))
            if options.max_length is not None and longest > options.max_length:
                raise InputError(
                    f"max_length is {options.max_length}, but a hypothesis leaves no room for input {first + i}; raise it, or "
                    f"{self.remedy}"
                )
            rows = self.rows(columns, items=[first + i] * len(encoded))
            examples.append([Example(row, group=None if self.buckets else len(row["input_ids"])) for row in rows])
        return examples

    def decode(
        self,
        item: Any,
        examples: Sequence[Example],
        outputs: Sequence[dict[str, Any]],
        options: ZeroShotClassificationOptions,
    ) -> dict[str, Any]:
        logits = np.stack([output["logits"] for output in outputs])  # [candidate labels, labels]
        scores = entailment_scores(logits, self.entailment(options), options.multi_label)
        order = scores.argsort()[::-1]  # equal scores in Transformers' order
        labels = options.labels
        return {"sequence": item, "labels": [labels[i] for i in order.tolist()], "scores": scores[order].tolist()}


def entailment_scores(logits: np.ndarray, entailment: int, multi_label: bool) -> np.ndarray:
    """Return the score of each candidate label, float32 [C].

    Args:
        logits: float32 [C, L], logits of the L labels of entailment for each hypothesis.
        entailment: Index of entailment.
        multi_label: Whether candidate labels are scored on their own; a single one always is.
    """
    if multi_label or len(logits) == 1:
        return softmax(logits[:, [-1 if entailment == 0 else 0, entailment]])[:, 1]
    return softmax(logits[:, entailment])
