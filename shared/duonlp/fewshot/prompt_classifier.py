"""The classifier of all methods with patterns and a masked language model."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from duonlp import numpy_ops
from duonlp.checkpoints.checkpoint import open_checkpoint
from duonlp.errors import CheckpointError, InputError, NewHeadWarning
from duonlp.fewshot.classifier import ClassifierFiles, check_settings, write_classifier
from duonlp.inputs import LOGIT_POSITIONS, model_inputs
from duonlp.prompts.patterns import Pattern, Verbalizer, as_patterns, encode_masked, num_masks, pad_prompts
from duonlp.schema import choice, integer, list_of, text
from duonlp.tasks.base import check_text, softmax
from duonlp.training.objectives.prompt import label_scores
from duonlp.typing import Engine, Tokenizer
from duonlp.util.buckets import bucket

CONTENT_FREE = ("N/A", "[MASK]", "")
"""Texts without content (Zhao et al. 2021, https://arxiv.org/abs/2102.09690, section 5)."""

CALIBRATION_TEXTS = 256
"""Number of unlabeled texts that a prior is computed from."""

CALIBRATIONS = ("content-free", "unlabelled", "none")
"""What a prior is computed from."""

COMBINATIONS = ("mean", "sum")

MODEL = "model"
"""Subfolder of the model."""

SETTINGS = {
    "patterns": list_of(text(10_000), 1, 1000),
    "words": list_of(list_of(text(1000), 1, 1000), 2),
    "combine": choice(*COMBINATIONS),
    "max_length": integer(1, 1 << 20),
    "batch_size": integer(1, 1 << 20),
}


@dataclass(frozen=True)
class PromptClassifier:
    """A classifier that reads the probabilities of the labels' words at the masks of prompts.

    Scores of several patterns are averaged before the softmax or the sigmoid.

    Attributes:
        package: tfnlp or jaxnlp.
        model: Masked language model.
        tokenizer: Its tokenizer.
        patterns: The patterns.
        verbalizer: Labels and their words.
        multi_label: Whether a text may have several labels, or none.
        combine: Whether the scores of a word's tokens are averaged or added up.
        prior: Score of each label in each pattern without a text, which is subtracted, float32 [patterns, C].
        max_length: Maximum number of tokens; of longer prompts, the text is truncated.
        batch_size: Texts per batch.
        method: Name of the method it was learned with.
    """

    package: Engine
    model: Any
    tokenizer: Tokenizer
    patterns: tuple[Pattern, ...]
    verbalizer: Verbalizer
    multi_label: bool
    combine: Literal["mean", "sum"]
    prior: np.ndarray
    max_length: int
    batch_size: int
    method: str

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels."""
        return self.verbalizer.label_names

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """Return the probability of each label, float32 [n, C]; without `multi_label`, rows add up to 1.

        Raises:
            InputError: An item is not a text, or there is no room for texts beside a pattern.
        """
        texts = [check_text(item, f"text {i}") for i, item in enumerate(texts)]
        if not texts:
            return np.zeros((0, len(self.label_names)), np.float32)
        return probabilities((self.raw_scores(texts) - self.prior[:, None]).mean(0), self.multi_label)

    def raw_scores(self, texts: Sequence[str]) -> np.ndarray:
        """Return the scores of the labels before calibration, float32 [patterns, n, C]: log probabilities, or log odds."""
        run, words = self.package.compiled(self.model), self.verbalizer.tokens(self.tokenizer, self.patterns)
        scores = np.zeros((len(self.patterns), len(texts), len(self.label_names)), np.float32)
        for pattern, result in zip(self.patterns, scores, strict=True):
            prompts = encode_masked(self.tokenizer, pattern, texts, num_masks(words), self.max_length)
            order = sorted(range(len(texts)), key=lambda i: len(prompts[i].ids))
            for first in range(0, len(order), self.batch_size):
                rows = order[first : first + self.batch_size]
                chosen = [prompts[i] for i in rows + rows[:1] * (bucket(len(rows), self.batch_size) - len(rows))]
                width = bucket(max(len(prompt.ids) for prompt in chosen), self.max_length)
                batch = pad_prompts(self.tokenizer, chosen, width)
                batch[LOGIT_POSITIONS] = np.stack([prompt.blank for prompt in chosen]).astype(np.int32)
                logits = np.asarray(run(**model_inputs(self.model.config, batch))["logits"], np.float32)
                result[rows] = label_scores(numpy_ops, logits, words, self.combine, self.multi_label)[: len(rows)]
        return scores

    def save(self, folder: str | Path) -> None:
        """Write the settings, and the model and its tokenizer into a subfolder, atomically."""
        settings = {
            "patterns": [pattern.template for pattern in self.patterns],
            "words": [list(words) for words in self.verbalizer.words], "combine": self.combine,
            "max_length": self.max_length, "batch_size": self.batch_size,
        }  # fmt: skip
        files = ClassifierFiles(self.method, self.label_names, self.multi_label, settings, {"prior": self.prior})
        write_classifier(files, folder, lambda new: self.model.save_pretrained(new / MODEL, self.tokenizer))

    @classmethod
    def load(cls, files: ClassifierFiles, package: Engine | None) -> Self:
        """Return the classifier of a folder.

        Raises:
            CheckpointError: The folder is damaged.
            InputError: There is no engine.
        """
        package, settings = checked_engine(package), check_settings(files, SETTINGS)
        if len(settings["words"]) != len(files.label_names):
            raise CheckpointError(
                f"{files.folder}: there are words for {len(settings['words'])} labels, but {len(files.label_names)} label names; "
                "train again"
            )
        patterns = as_patterns(settings["patterns"])
        model, tokenizer = load_language_model(package, files.folder / MODEL, "AutoModelForMaskedLM")
        return cls(
            package, model, tokenizer, patterns, Verbalizer(files.label_names, tuple(map(tuple, settings["words"]))),
            files.multi_label, settings["combine"],
            files.array("prior", np.float32, (len(patterns), len(files.label_names))), settings["max_length"],
            settings["batch_size"], files.method,
        )  # fmt: skip


def probabilities(scores: np.ndarray, multi_label: bool) -> np.ndarray:
    """Return the sigmoid of scores [n, C], or their softmax if each text has one label, float32."""
    scores = scores.astype(np.float64)
    return (1 / (1 + np.exp(-scores)) if multi_label else softmax(scores)).astype(np.float32)


def load_language_model(package: Engine, name: str | Path, auto_class: str) -> tuple[Any, Tokenizer]:
    """Load a language model, whose head must be in the checkpoint, and its tokenizer.

    Raises:
        InputError: The checkpoint has no language modeling head, or, for a masked one, the tokenizer no mask token.
        CheckpointError: It cannot be read.
    """
    tokenizer = open_checkpoint(name).tokenizer()
    kind = "masked" if auto_class == "AutoModelForMaskedLM" else "causal"
    if kind == "masked" and tokenizer.mask_token_id is None:
        raise InputError(
            f"the tokenizer of {str(name)!r} has no mask token; use a masked language model and its own tokenizer"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error", NewHeadWarning)
        try:
            return getattr(package, auto_class).from_pretrained(name), tokenizer
        except NewHeadWarning:
            raise InputError(
                f"{str(name)!r} has no language modeling head, so its predictions would be random; use a {kind} language model"
            ) from None


def with_prior(classifier: PromptClassifier, texts: Sequence[str]) -> PromptClassifier:
    """Return a classifier that subtracts the scores of texts without content, or the mean scores of typical texts.

    Without `multi_label`, the mean is that of the probabilities, as in contextual calibration (Zhao et al. 2021,
    https://arxiv.org/abs/2102.09690, section 5), whose diag(p)^-1 p it then equals; otherwise it is that of the log odds.
    """
    scores = classifier.raw_scores(texts).astype(np.float64)  # [patterns, n, C]
    mean = scores.mean(1) if classifier.multi_label else np.log(softmax(scores).mean(1))
    return replace(classifier, prior=mean.astype(np.float32))


def checked_engine(package: Engine | None) -> Engine:
    """Return an engine.

    Raises:
        InputError: It is None.
    """
    if package is None:
        raise InputError("prompts need a model; pass package=tfnlp or jaxnlp")
    return package
